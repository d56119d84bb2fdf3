"""Augmented views of an image; its focus mask and the box of its best region are transformed with it."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from medfocus.stages import torchvision_ops  # noqa: F401  before torchvision

# isort: split
from torchvision import tv_tensors
from torchvision.transforms import v2

# Degrees, shares of the side, scale factors, and shares of brightness and contrast. They are as small as differences of
# patient position and exposure between sites. Images are not mirrored: left and right have a meaning in medicine.
_ROTATION, _SHIFT, _SCALE, _EXPOSURE = 10.0, 0.05, (0.9, 1.1), 0.2


@dataclass(frozen=True)
class View:
    """One view of an image.

    Attributes:
        pixels: uint8 [S, S, c], the image.
        cover: float32 [h, w] in 0..1, the share of each cell of a grid over the image that the focus mask covers; a
            cell may be one pixel.
        box: float32 [4] in 0..1, left, top, right and bottom of the best region as shares of the sides.
    """

    pixels: np.ndarray
    cover: np.ndarray
    box: np.ndarray


def augment(view: View, name: str, number: int) -> View:
    """Rotate, shift and scale an image and change its exposure, at random, with its mask and its box.

    Args:
        view: the image itself, with a cover of the image's own size [S, S].
        name: identifier of the image. It seeds the random draw together with ``number``.
        number: index of the view. The same name and number give the same view.

    Returns:
        The augmented view, of the same shapes.
    """
    size = len(view.pixels)
    transform = v2.Compose(
        [
            v2.RandomAffine(
                _ROTATION, translate=(_SHIFT, _SHIFT), scale=_SCALE, interpolation=v2.InterpolationMode.BILINEAR
            ),
            v2.ColorJitter(brightness=_EXPOSURE, contrast=_EXPOSURE),
            v2.ClampBoundingBoxes("hard"),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        digest = hashlib.sha256(f"{number} {name}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        pixels, cover, box = transform(
            tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(view.pixels)).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(view.cover)),
            tv_tensors.BoundingBoxes(
                torch.from_numpy(view.box[None] * size),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=(size,) * 2,
            ),
        )
    return View(pixels.permute(1, 2, 0).numpy(), cover.numpy(), (box[0] / size).numpy())
