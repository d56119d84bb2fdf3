"""Binary masks: COCO run-length codes, and the share of each cell of a grid that a mask covers."""

import numpy as np
from pycocotools import mask as coco


def encode_mask(mask: np.ndarray) -> str:
    """COCO compressed run-length counts of a mask, bool [H, W]."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """The mask, bool [height, width], of COCO compressed run-length counts."""
    return coco.decode({"size": [int(height), int(width)], "counts": counts.encode("ascii")}).astype(bool)


def cover(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Share of each cell that the mask covers, exactly, also where cells cut through pixels.

    Args:
        mask: bool [H, W].
        rows, columns: of the grid laid over the whole mask.

    Returns:
        float32 [rows, columns] in 0..1.
    """
    down = _overlaps(mask.shape[0], rows)
    across = _overlaps(mask.shape[1], columns)
    return np.clip(down @ mask.astype(np.float32) @ across.T, 0, 1)


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """Share of each cell that each pixel fills along one axis, float32 [cells, pixels]; rows sum to 1."""
    edges = np.arange(cells + 1) * (pixels / cells)
    start, stop = edges[:-1, None], edges[1:, None]
    pixel = np.arange(pixels)[None, :]
    overlap = np.minimum(stop, pixel + 1) - np.maximum(start, pixel)
    return (np.clip(overlap, 0, None) * (cells / pixels)).astype(np.float32)
