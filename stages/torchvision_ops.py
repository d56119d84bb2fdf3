"""Make ``import torchvision`` work beside a CPU build of torch.

The torchvision wheel is linked against CUDA. Beside a CPU build of torch its compiled operators do not load, and the
registration of its fake kernels fails with ``operator torchvision::nms does not exist``. Only the schemas are missing:
sam2, open_clip and timm import torchvision for its pure Python transforms and call none of the compiled operators.
Where the real operators load, this module changes nothing.
"""

import ctypes
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _operators_load() -> bool:
    """Whether torchvision's compiled operators load beside the installed torch."""
    specification = importlib.util.find_spec("torchvision")
    if specification is None or specification.origin is None:
        return False
    for library in Path(specification.origin).parent.glob("_C*.so"):
        try:
            ctypes.CDLL(str(library))
        except OSError:
            return False
        return True
    return False


library: torch.library.Library | None = None
if not _operators_load():
    # The object lives as long as the process: torch removes the definitions when it is collected.
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
