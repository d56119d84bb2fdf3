"""Tells the same picture, by a digest of its pixels, and like pictures, by a perceptual hash."""

import hashlib

import imagehash
import numpy as np
from PIL import Image

# Hashes of pictures of one colour, such as the slices beside a body: black, and any other.
BLANK = frozenset({"0000000000000000", "8000000000000000"})
# Side in pixels of the picture whose frequencies are computed: that of imagehash.phash.
_SIDE = 32
# A picture is averaged to at least so many times this side before it is resized.
_REDUCING_GAP = 2.0


def pixels_digest(pixels: np.ndarray) -> str:
    """The digest of a picture; the same pixels have the same digest, whatever file they are from.

    Args:
        pixels: uint8 or uint16 [H, W], or uint8 [H, W, 3], RGB. A grey picture that is stored in RGB has the digest of
            the grey one.

    Returns:
        SHA-256 of shape, type and pixels, in hexadecimal digits.
    """
    pixels = _without_colour(pixels)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype.newbyteorder('<').str}".encode())
    digest.update(np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def perceptual_hash(pixels: np.ndarray) -> str:
    """The hash of a picture's coarse shapes; like pictures differ in few of its 64 bits.

    This is ``imagehash.phash``: whether each of the lowest frequencies of the cosine transform is above their median. A
    large picture is averaged first, which is much faster and changes few bits.

    Args:
        pixels: uint8 [H, W], or uint8 [H, W, 3], RGB; or uint16 [H, W], of which the upper eight bits are taken.

    Returns:
        16 hexadecimal digits.
    """
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    return str(imagehash.phash(small))


def hamming(one: str, other: str) -> int:
    """Number of bits, of 64, in which two perceptual hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _without_colour(pixels: np.ndarray) -> np.ndarray:
    """A picture with three equal channels as one channel."""
    if pixels.ndim != 3:
        return pixels
    red, green, blue = (pixels[:, :, channel] for channel in range(3))
    return red if np.array_equal(red, green) and np.array_equal(red, blue) else pixels
