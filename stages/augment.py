"""Augmented views of an image, with its focus mask and its best region seen alike."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from medfocus.stages import torchvision_ops  # noqa: F401  before torchvision

# isort: split
from torchvision import tv_tensors
from torchvision.transforms import v2

# Slight, as a patient's position and a site's exposure vary. Nothing is mirrored: sides mean something in medicine.
_ROTATION, _SHIFT, _SCALE, _EXPOSURE = 10.0, 0.05, (0.9, 1.1), 0.2


@dataclass(frozen=True)
class View:
    """An image as it is seen.

    ``pixels`` is uint8 [S, S, c]; ``cover`` float32 [h, w], the mask's share of each cell of a grid over the image, or
    of each pixel; ``box`` float32 [4], left, top, right and bottom of the best region as shares of the sides.
    """

    pixels: np.ndarray
    cover: np.ndarray
    box: np.ndarray


def augment(view: View, name: str, number: int) -> View:
    """Turn, shift, scale and expose an image a little, at random, and its mask and box with it.

    Args:
        view: as it is, with a cover of the image's own size.
        name: of the image; the same name and number give the same view.
        number: of the view.
    """
    size = len(view.pixels)
    change = v2.Compose(
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
        pixels, cover, box = change(
            tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(view.pixels)).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(view.cover)),
            tv_tensors.BoundingBoxes(
                torch.from_numpy(view.box[None] * size),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=(size,) * 2,
            ),
        )
    return View(pixels.permute(1, 2, 0).numpy(), cover.numpy(), (box[0] / size).numpy())
