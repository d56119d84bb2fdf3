"""Images that Pillow decodes to 8 bits as they are meant: PNG, JPEG, BMP, WebP and GIF of up to 8 bits a sample."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image, ImageChops, ImageFile

from medfocus.stages.formats.picture import ImageError, Picture, check_size

Plugin = Callable[[io.BytesIO], ImageFile.ImageFile]

_ORIENTATION = 274


@contextmanager
def no_pixel_limit() -> Iterator[None]:
    """Pillow without its own limit of pixels, for the time of a call: ``decode.max_pixels`` is the one limit.

    The limit is a global of Pillow's; it is as it was afterwards.
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
        content: the file.
        name: of the format, for messages.
        plugin: class of ``PIL``'s plugin for the format. It is called by itself: ``Image.open`` has its own limit of
            pixels, and takes an MPO file for a stack of its pictures.
        max_pixels: more are refused before decoding.
        exif: what holds the orientation, if the plugin does not find it.
        single: the plugin has chosen the frame that is meant, and has turned it upright.

    Raises:
        ImageError: Undecodable, TooManyPixels, ManyFrames or NothingShown.
    """
    with no_pixel_limit():
        try:
            image = plugin(io.BytesIO(content))
            frames = 1 if single else getattr(image, "n_frames", 1)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's header readers raise whatever the bytes lead them into
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
    return Picture(_layers(image), 1 if single else orientation_of(exif or image.info.get("exif")))


def orientation_of(exif: bytes | None) -> int:
    """Value of the orientation in an EXIF block; 1 where there is none, or the block cannot be read."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(_ORIENTATION, 1)
    except Exception:  # a damaged block is no reason to refuse the image: viewers show it as stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _layers(image: Image.Image) -> tuple[Image.Image, ...]:
    """What is shown of a loaded image, on black: one image of mode L or RGB, or three of mode L."""
    if "transparency" in image.info or image.mode == "PA":
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA", "La", "RGBa"):
        *colours, opacity = image.split()
        if opacity.getextrema()[1] == 0:
            raise ImageError("NothingShown", "every pixel is fully transparent")
        return tuple(ImageChops.multiply(colour, opacity) for colour in colours)
    wanted = "L" if image.mode in ("1", "L") else "RGB"
    return (image if image.mode == wanted else image.convert(wanted),)  # which copies, also to the same mode
