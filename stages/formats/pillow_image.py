"""Reads images whose 8-bit pixels Pillow decodes correctly: PNG, JPEG, BMP, WebP and GIF of at most 8 bits a sample."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image, ImageChops, ImageFile

from medfocus.stages.formats.picture import ImageError, Picture, check_size

Plugin = Callable[[io.BytesIO], ImageFile.ImageFile]
"""A class of Pillow that opens one file format."""

_ORIENTATION = 274


@contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Suspend Pillow's own limit of pixels, since ``decode.max_pixels`` is the only limit.

    The limit is a global variable of Pillow. It is restored afterwards.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_image(
    content: bytes, name: str, plugin: Plugin, max_pixels: int, exif: bytes | None = None, *, single: bool = False
) -> Picture:
    """Decode an image with one of Pillow's plugins.

    Args:
        content: the bytes of the file.
        name: name of the format, for messages.
        plugin: Pillow's class for the format. It is called directly, because ``Image.open`` reads an MPO as a stack of
            its pictures.
        max_pixels: most pixels that may be decoded.
        exif: the EXIF block with the orientation; None takes the block that the plugin finds.
        single: whether the plugin has selected one frame and turned it upright.

    Raises:
        ImageError: Undecodable, TooManyPixels, ManyFrames or NothingShown.
    """
    with without_pixel_limit():
        try:
            image = plugin(io.BytesIO(content))
            frames = 1 if single else getattr(image, "n_frames", 1)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's header readers raise errors of any class on damaged bytes
            raise ImageError("Undecodable", f"the header of the {name} is damaged or cut off") from error
        check_size(image.width, image.height, max_pixels)
        if frames > 1:
            raise ImageError("ManyFrames", "the file holds several frames; store each as an image of its own")
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:
            if "truncated" in str(error):
                raise ImageError("Truncated", f"the {name} is truncated: its image data do not end") from error
            raise ImageError("Undecodable", f"the image data of the {name} are damaged (Pillow: {error})") from error
    return Picture(layers_of(image), 1 if single else orientation_of(exif or image.info.get("exif")))


def orientation_of(exif: bytes | None) -> int:
    """The orientation (tag 274) in an EXIF block, 1 to 8; 1 where there is none or the block is damaged."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(_ORIENTATION, 1)
    except Exception:  # a viewer shows an image with a damaged block as it is stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def layers_of(image: Image.Image) -> tuple[Image.Image, ...]:
    """Blend a loaded image of 8 bits with black by its opacity.

    Returns:
        One image of mode L or RGB, or three of mode L.

    Raises:
        ImageError: NothingShown where every pixel is fully transparent.
    """
    if "transparency" in image.info or image.mode == "PA":
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA", "La", "RGBa"):
        *colours, opacity = image.split()
        if opacity.getextrema()[1] == 0:
            raise ImageError("NothingShown", "every pixel is fully transparent")
        return tuple(ImageChops.multiply(colour, opacity) for colour in colours)
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return (image if image.mode == mode else image.convert(mode),)  # convert copies, even to the same mode
