from typing import Any

import pytest
import torch

from medfocus.cluster.resources import Share
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution.actor import ModelActor


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_node_whose_torch_finds_no_gpu_is_named_with_the_mend() -> None:
    unused: Any = None  # the device is looked at first
    with pytest.raises(MedFocusError, match=r"node .*: torch .* finds no CUDA device; .*cluster\.device=cpu"):
        ModelActor(unused, Share(1, 0.5, 0.5, 1), "cuda", unused)
