"""Reads the frames of a DICOM file as a viewer shows them."""

from collections.abc import Iterator

import numpy as np
from pydicom import Dataset

from medfocus.stages.dicom.colour import colours_of
from medfocus.stages.dicom.grey import Greys, greys_of, levels_of
from medfocus.stages.dicom.groups import position_of, sides_of, spacing_of
from medfocus.stages.dicom.header import open_image
from medfocus.stages.dicom.layout import layout_of
from medfocus.stages.dicom.stored import Stored, stored_frames
from medfocus.stages.formats.frames import Display, Frame, FrameChoice, square_pixels

# Bytes of a pixel, and of the header, of a deflated file with the most pixels allowed.
_BYTES_PER_PIXEL, _HEADER = 8, 1 << 26


def read_frames(content: bytes, choice: FrameChoice, display: Display) -> Iterator[Frame]:
    """Decode frames of a DICOM file, one at a time.

    What cannot be read is told before the first frame is decoded, as far as the header and the lengths show it.

    Args:
        content: the bytes of the file.
        choice: which frames.
        display: how they are shown.

    Yields:
        The frames in their order. Grey ones have 8 bits, or ``display.bits``; colours, and greys of 8 bits and fewer
        without a window, always have 8.

    Raises:
        ImageError: Undecodable, Truncated, Unsupported, MissingDecoder or TooManyPixels.
    """
    header, element = open_image(content, display.max_pixels * _BYTES_PER_PIXEL + _HEADER)
    layout = layout_of(header, element, display.max_pixels)
    tables = _Tables()
    for stored in stored_frames(header, element, layout, choice):
        if stored.photometric.startswith("MONOCHROME"):
            greys = greys_of(header, stored.number, layout, display.window)
            pixels, window = tables.show(stored, greys, display.bits)
        else:
            pixels, window = colours_of(stored, header), None
        yield _frame(header, stored.number, pixels, window, display)


class _Tables:
    """Shows grey frames by a table of all sample values, which is kept while frames are shown in the same way."""

    def __init__(self) -> None:
        self._key: object = None
        self._table = np.empty(0, np.uint8)
        self._window: tuple[float, float] | None = None

    def show(self, stored: Stored, greys: Greys, bits: int) -> tuple[np.ndarray, tuple[float, float] | None]:
        """Convert a frame.

        Returns:
            Uint8 [H, W] and None, or uint16 [H, W] and centre and width of the window.
        """
        words = stored.words
        if words.dtype.kind == "f" or words.itemsize > 2:
            levels = levels_of(stored.values(words), None, greys)
            return (levels.bytes(), None) if bits == 8 else (levels.words(), levels.window)
        count = 2 ** (8 * words.itemsize)
        key = (greys, words.dtype, stored.bits, stored.shift, stored.signed)
        if greys.voi is None or key != self._key:
            weights = np.bincount(words.reshape(-1), minlength=count) if greys.voi is None else None
            levels = levels_of(stored.values(np.arange(count, dtype=words.dtype)), weights, greys)
            self._key = key
            self._table = levels.bytes() if bits == 8 else levels.words()
            self._window = None if bits == 8 else levels.window
        return np.take(self._table, words), self._window


def _frame(
    header: Dataset, number: int, pixels: np.ndarray, window: tuple[float, float] | None, display: Display
) -> Frame:
    """A frame with square pixels and its place in the patient."""
    spacing = spacing_of(header, number)
    pixels, growth = square_pixels(pixels, sides_of(header, spacing), display.max_pixels)
    if spacing is not None:
        spacing = spacing[0] / growth[0], spacing[1] / growth[1]
    return Frame(number, pixels, spacing, position_of(header, number), window)
