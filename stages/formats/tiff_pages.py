"""Selects the main image among those in a TIFF."""

import itertools
import math
import struct
from collections.abc import Iterator

from tifffile import TiffFile, TiffPage

from medfocus.stages.formats.picture import ImageError

# The tag SubfileType of older TIFF versions, and its value for a reduced image.
_OLD_SUBFILE = 255
_OLD_REDUCED = 2
# Most pages that are read.
_PAGES = 256


def main_page(file: TiffFile) -> TiffPage | None:
    """Select the main image of a TIFF.

    Pages that are marked as reduced images or masks are excluded. Thumbnails and the levels of a pyramid are excluded
    also where they are not marked: pages of the same aspect ratio as the largest, each of another size and none above
    half of it. Sub-directories count as pages, since some cameras store the main image there.

    Args:
        file: the TIFF.

    Returns:
        The page; None where no page has an image.

    Raises:
        ImageError: ManyFrames where several images remain, Truncated where one may lie after the end of the file.
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
    """The pages and those of their sub-directories; a directory that points back to an earlier one is the last.

    Raises:
        ImageError: Truncated where a directory lies after the end of the file, since the main image may be there.
    """
    offsets: list[int] = []
    for page in itertools.islice(file.pages, _PAGES):
        if not isinstance(page, TiffPage) or page.offset in offsets:
            return
        offsets.append(page.offset)
        yield page
        if any(offset >= file.filehandle.size for offset in page.subifds or ()):
            raise _truncated()
        yield from (inner for inner in itertools.islice(page.pages or (), _PAGES) if isinstance(inner, TiffPage))
    if offsets and len(offsets) < _PAGES and _next_directory(file, offsets[-1]) not in (0, *offsets):
        raise _truncated()


def _next_directory(file: TiffFile, offset: int) -> int:
    """The offset that a directory, given by its own offset, names for the next one; 0 where it is the last."""
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
    """Whether a page is marked as a reduced image or a mask."""
    return page.is_reduced or page.is_mask or page.tags.valueof(_OLD_SUBFILE) == _OLD_REDUCED


def _is_thumbnail(page: TiffPage, main: TiffPage) -> bool:
    """Whether a page has the aspect ratio of the main one and at most half of its size."""
    small = 2 * page.imagewidth <= main.imagewidth + 1 and 2 * page.imagelength <= main.imagelength + 1
    skew = abs(page.imagewidth * main.imagelength - page.imagelength * main.imagewidth)
    return small and skew <= max(main.imagewidth, main.imagelength)  # one pixel of rounding


def _planes(file: TiffFile, page: TiffPage) -> int:
    """Images in a stack that has one directory in all (ImageJ, tifffile, volumes); 0 where it is not a stack."""
    if page.imagedepth > 1:
        return int(page.imagedepth)
    if not (file.is_imagej or file.is_shaped) or len(file.pages) > 1:
        return 0
    planes = math.prod(file.series[0].shape) // max(1, math.prod(page.shape))
    return planes if planes > 1 else 0
