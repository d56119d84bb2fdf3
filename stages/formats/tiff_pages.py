"""Which of the images in a TIFF is meant."""

import itertools
import math
import struct
from collections.abc import Iterator

from tifffile import TiffFile, TiffPage

from medfocus.stages.formats.picture import ImageError

_OLD_SUBFILE = 255
_OLD_REDUCED = 2
# Pages that are looked at.
_PAGES = 256


def main_page(file: TiffFile) -> TiffPage | None:
    """The page that a TIFF is about; None where there is no page with an image.

    Pages that say of themselves that they are reduced images or masks of others are left out, and so are thumbnails and
    the levels of a pyramid that do not say so: pages of the same shape as the largest, each of another size, none above
    half of it. Sub-directories count as pages, since some cameras keep the main image there.

    Raises:
        ImageError: ManyFrames, where several images are left; Truncated, where some may lie behind the end.
    """
    pages = [page for page in _pages(file) if page.imagewidth and page.imagelength]
    if not pages:
        return None
    whole = [page for page in pages if not _is_reduced(page)] or pages
    main = max(whole, key=lambda page: page.imagewidth * page.imagelength)
    others = [page for page in whole if page is not main]
    sizes = {(page.imagewidth, page.imagelength) for page in others}
    if len(sizes) < len(others) or not all(_is_thumbnail(page, main) for page in others):
        raise ImageError("ManyFrames", f"the TIFF holds {len(whole)} images; store each as a file of its own")
    if planes := _planes(file, main):
        raise ImageError("ManyFrames", f"the TIFF holds a stack of {planes} images; store each as a file of its own")
    return main


def _pages(file: TiffFile) -> Iterator[TiffPage]:
    """Pages and those of their sub-directories; a directory that leads back to an earlier one ends the file.

    Raises:
        ImageError: Truncated, where a directory lies behind the end: the main image may be there.
    """
    seen: list[int] = []
    for page in itertools.islice(file.pages, _PAGES):
        if not isinstance(page, TiffPage) or page.offset in seen:
            return
        seen.append(page.offset)
        yield page
        if any(offset >= file.filehandle.size for offset in page.subifds or ()):
            raise _truncated()
        yield from (inner for inner in itertools.islice(page.pages or (), _PAGES) if isinstance(inner, TiffPage))
    if seen and len(seen) < _PAGES and _next_directory(file, seen[-1]) not in (0, *seen):
        raise _truncated()


def _next_directory(file: TiffFile, offset: int) -> int:
    """Where the directory after that at an offset is said to be; 0 where it is the last."""
    stream, form = file.filehandle, file.tiff
    stream.seek(offset)
    (tags,) = struct.unpack(form.tagnoformat, stream.read(form.tagnosize))
    stream.seek(offset + form.tagnosize + tags * form.tagsize)
    following = stream.read(form.offsetsize)
    if len(following) < form.offsetsize:
        raise _truncated()
    return int(struct.unpack(form.offsetformat, following)[0])


def _truncated() -> ImageError:
    return ImageError("Truncated", "the TIFF is truncated: it names an image that lies behind its end")


def _is_reduced(page: TiffPage) -> bool:
    return page.is_reduced or page.is_mask or page.tags.valueof(_OLD_SUBFILE) == _OLD_REDUCED


def _is_thumbnail(page: TiffPage, main: TiffPage) -> bool:
    small = 2 * page.imagewidth <= main.imagewidth + 1 and 2 * page.imagelength <= main.imagelength + 1
    skew = abs(page.imagewidth * main.imagelength - page.imagelength * main.imagewidth)
    return small and skew <= max(main.imagewidth, main.imagelength)  # a pixel's rounding


def _planes(file: TiffFile, page: TiffPage) -> int:
    """Images in a stack with one directory for all of it, as ImageJ, tifffile and volumes have; 0 where it is none."""
    if page.imagedepth > 1:
        return int(page.imagedepth)
    if not (file.is_imagej or file.is_shaped) or len(file.pages) > 1:
        return 0
    planes = math.prod(file.series[0].shape) // max(1, math.prod(page.shape))
    return planes if planes > 1 else 0
