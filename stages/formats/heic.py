"""The reader of HEIC, the still image of phones (ISO/IEC 23008-12)."""

import numpy as np
import pi_heif  # type: ignore[import-untyped]
from pi_heif import HeifFile

from medfocus.stages.formats.picture import ImageError, Picture, Raster, check_size
from medfocus.stages.formats.pillow_image import layers_of


def read_heic(content: bytes, max_pixels: int) -> Picture:
    """Decode the main image of a HEIC file; its orientation is applied by the decoder.

    Colours of more than 8 bits are reduced to 8 by value. Greys of more bits are windowed.

    Args:
        content: the bytes of the file.
        max_pixels: most pixels that may be decoded.

    Raises:
        ImageError: Undecodable, Truncated, TooManyPixels or NothingShown.
    """
    try:
        file: HeifFile = pi_heif.open_heif(content, convert_hdr_to_8bit=True)
        width, height = file.size
    except MemoryError:
        raise
    except Exception as error:  # libheif raises errors of several classes on damaged bytes
        raise ImageError("Undecodable", "the header of the HEIC is damaged or cut off") from error
    check_size(width, height, max_pixels)
    try:
        image = file.to_pillow()
    except MemoryError:
        raise
    except Exception as error:
        if "end of file" in str(error).lower() or _is_truncated(content):
            raise ImageError("Truncated", "the HEIC is truncated: its image data do not end") from error
        raise ImageError("Undecodable", f"the image data of the HEIC are damaged ({type(error).__name__})") from error
    if image.mode.startswith("I;16"):
        return Raster(np.asarray(image)[..., None], None).to_picture()
    return Picture(layers_of(image))


def _is_truncated(content: bytes) -> bool:
    """Whether a box of the file ends behind the end of the file."""
    place = 0
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        length = int.from_bytes(content[place + 8 : place + 16], "big") if length == 1 else length
        if length < 8:
            return False
        place += length
    return place > len(content)
