"""From the stored samples of a colour DICOM image to red, green and blue of 8 bits (PS3.3 C.7.6.3.1.2)."""

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.pixels import apply_color_lut

from medfocus.stages.dicom.stored import Stored
from medfocus.stages.formats.picture import ImageError

_YBR_FULL = ("YBR_FULL", "YBR_FULL_422")
# Luma and chroma of the narrow range (ITU-R BT.601): their least value, their range, and the middle of chroma.
_LUMA_LOW, _LUMA_RANGE, _CHROMA_RANGE, _MIDDLE = 16, 219, 224, 128


def colours_of(stored: Stored, header: Dataset) -> np.ndarray:
    """Convert a frame of three samples a pixel, or of a palette.

    Samples of more than 8 bits are shown by their value: the largest that their bits can hold is white.

    Args:
        stored: the frame.
        header: the attributes, which hold the palette.

    Returns:
        Uint8 [H, W, 3].

    Raises:
        ImageError: Undecodable or Unsupported.
    """
    if stored.words.dtype.kind == "f" or stored.signed:
        raise ImageError("Unsupported", "colours that are signed or floating-point are not read")
    if stored.photometric == "PALETTE COLOR":
        return _palette(stored, header)
    pixels = _to_bytes(stored)
    if stored.photometric in _YBR_FULL:
        return np.asarray(Image.fromarray(pixels, mode="YCbCr").convert("RGB"))
    if stored.photometric.startswith("YBR_PARTIAL"):
        wide = np.empty(pixels.shape, np.float32)
        wide[..., 0] = (pixels[..., 0] - np.float32(_LUMA_LOW)) * (255 / _LUMA_RANGE)
        wide[..., 1:] = (pixels[..., 1:] - np.float32(_MIDDLE)) * (255 / _CHROMA_RANGE) + _MIDDLE
        full = np.rint(np.clip(wide, 0, 255)).astype(np.uint8)
        return np.asarray(Image.fromarray(full, mode="YCbCr").convert("RGB"))
    if stored.photometric != "RGB":
        raise ImageError("Unsupported", f"{stored.photometric} without the compression that it belongs to is not read")
    return pixels


def _to_bytes(stored: Stored) -> np.ndarray:
    """The samples scaled to 8 bits, uint8 of their shape."""
    words, full = stored.words, 2**stored.bits - 1
    if words.dtype == np.uint8 and stored.bits == 8:
        return np.ascontiguousarray(words)
    if words.itemsize <= 2:
        values = stored.values(np.arange(2 ** (8 * words.itemsize), dtype=words.dtype))
        return np.take(np.rint(values * (255 / full)).astype(np.uint8), words)
    pixels: np.ndarray = np.rint(stored.values(words) * (255 / full)).astype(np.uint8)
    return pixels


def _palette(stored: Stored, header: Dataset) -> np.ndarray:
    """Look up the colours of a palette, which may be segmented; entries of 16 bits are cut to their upper 8."""
    if stored.words.itemsize > 2:
        raise ImageError("Unsupported", "a palette for samples of more than 16 bits is not read")
    places = stored.values(np.arange(2 ** (8 * stored.words.itemsize), dtype=stored.words.dtype))
    try:
        table = apply_color_lut(places, header)
    except Exception as error:  # pydicom raises errors of any class on damaged tables
        raise ImageError("Undecodable", f"the palette is missing or damaged ({type(error).__name__})") from error
    if table.dtype != np.uint8:
        table = table >> 8 if table.max() > 255 else table  # some writers fill the lower byte
    return np.take(table.astype(np.uint8)[..., :3], stored.words, axis=0)
