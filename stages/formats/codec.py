"""One way to call the decoders of the package imagecodecs."""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np

from medfocus.stages.formats.picture import ImageError


def decoded(decoder: Callable[..., np.ndarray], content: bytes, name: str, **options: Any) -> np.ndarray:
    """Samples [H, W, C] of an image file.

    Args:
        decoder: a function of imagecodecs.
        content: the file.
        name: of the format, for messages.
        options: of the function.

    Raises:
        ImageError: Undecodable, or MissingDecoder where the installed build has no such decoder.
    """
    try:
        samples = decoder(content, **options)
    except imagecodecs.DelayedImportError as error:
        raise missing(name) from error
    except MemoryError:
        raise
    except Exception as error:  # each codec has an error class of its own
        raise ImageError(
            "Undecodable", f"the image data of the {name} are damaged or not supported: {error}"
        ) from error
    return samples[:, :, None] if samples.ndim == 2 else samples


def missing(name: str) -> ImageError:
    """The error of a build of imagecodecs that lacks a decoder."""
    return ImageError(
        "MissingDecoder", f"{name} needs a build of the package imagecodecs that reads it; install such a build"
    )
