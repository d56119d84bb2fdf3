"""Full-size models with random weights, which take the same time as trained ones."""

from pathlib import Path

import torch

from benchmarks.features import CLIP, CUT, SAM2
from medfocus.stages.weights import load_clip, load_sam2


def write_full_size(folder: Path) -> list[str]:
    """Write SAM2.1-tiny and ViT-B/16 in their official formats.

    Args:
        folder: an existing folder for both files.

    Returns:
        The ``section.key=value`` settings that name the models and their files.
    """
    torch.save({"model": load_sam2(SAM2, None, seed=0).state_dict()}, folder / "sam2.pt")
    torch.save(load_clip(CLIP, None, seed=0).state_dict(), folder / "clip.pt")
    return [
        f"segment.model={SAM2}",
        f"segment.weights={folder / 'sam2.pt'}",
        f"clip.model={CLIP}",
        f"clip.weights={folder / 'clip.pt'}",
        f"clip.cut={CUT}",
    ]
