"""Calls the decoders of the package imagecodecs, and converts their errors."""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np

from medfocus.stages.formats.picture import ImageError


def decode_samples(decoder: Callable[..., np.ndarray], content: bytes, name: str, **options: Any) -> np.ndarray:
    """Decode the samples of an image file.

    Args:
        decoder: a decoder of imagecodecs.
        content: the bytes of the file.
        name: name of the format, for messages.
        options: keyword arguments of the decoder.

    Returns:
        Samples [H, W, C] of the type that the file stores.

    Raises:
        ImageError: Undecodable, or MissingDecoder where the installed build lacks this decoder.
    """
    try:
        samples = decoder(content, **options)
    except imagecodecs.DelayedImportError as error:
        raise missing_decoder(name) from error
    except MemoryError:
        raise
    except Exception as error:  # each codec has its own error class
        raise ImageError(
            "Undecodable", f"the image data of the {name} are damaged or not supported: {error}"
        ) from error
    return samples[:, :, None] if samples.ndim == 2 else samples


def missing_decoder(name: str) -> ImageError:
    """The error for a format, by its name, whose decoder the installed build of imagecodecs lacks."""
    return ImageError(
        "MissingDecoder", f"{name} needs a build of the package imagecodecs that reads it; install such a build"
    )
