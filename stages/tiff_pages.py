"""Which of the images in a TIFF is meant."""

import itertools
import math
from collections.abc import Iterator

from tifffile import TiffFile, TiffPage

from stages.picture import ImageError

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
        ImageError: ManyFrames, where several images are left.
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
    """Pages and those of their sub-directories; directories that lead back to an earlier one end the file."""
    seen: set[int] = set()
    for page in itertools.islice(file.pages, _PAGES):
        if not isinstance(page, TiffPage) or page.offset in seen:
            return
        seen.add(page.offset)
        yield page
        yield from (inner for inner in itertools.islice(page.pages or (), _PAGES) if isinstance(inner, TiffPage))


def _is_reduced(page: TiffPage) -> bool:
    return page.is_reduced or page.is_mask or page.tags.valueof(_OLD_SUBFILE) == _OLD_REDUCED


def _is_thumbnail(page: TiffPage, main: TiffPage) -> bool:
    small = 2 * page.imagewidth <= main.imagewidth + 1 and 2 * page.imagelength <= main.imagelength + 1
    skew = abs(page.imagewidth * main.imagelength - page.imagelength * main.imagewidth)
    return small and skew <= max(main.imagewidth, main.imagelength)  # a pixel's rounding


def _planes(file: TiffFile, page: TiffPage) -> int:
    """Images in a stack that has one directory for all of it, as ImageJ, tifffile and volumes do; 0 where it is none."""
    if page.imagedepth > 1:
        return int(page.imagedepth)
    if not (file.is_imagej or file.is_shaped) or len(file.pages) > 1:
        return 0
    planes = math.prod(file.series[0].shape) // max(1, math.prod(page.shape))
    return planes if planes > 1 else 0
