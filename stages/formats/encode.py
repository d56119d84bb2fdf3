"""Writes pictures as PNG."""

import imagecodecs
import numpy as np

# Runs (strategy 3) of the differences to the row above (filter 32): the fastest settings of libpng that compress well.
# The figures are in docs/formats.md.
_LEVEL, _RUNS, _DIFFERENCE_TO_ROW_ABOVE = 1, 3, 32


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode an image as PNG, without loss and without metadata.

    Args:
        pixels: uint8 or uint16 [H, W] or [H, W, 3], of at least one pixel.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: the array has another type or shape.
    """
    coloured = pixels.ndim == 3 and pixels.shape[2] == 3
    if pixels.dtype not in (np.uint8, np.uint16) or not (pixels.ndim == 2 or coloured) or not pixels.size:
        raise ValueError(f"a PNG cannot hold {pixels.dtype} of the shape {pixels.shape}")
    content = imagecodecs.png_encode(
        np.ascontiguousarray(pixels), level=_LEVEL, strategy=_RUNS, filter=_DIFFERENCE_TO_ROW_ABOVE
    )
    return bytes(content)
