"""Binary masks: COCO run-length codes, boxes, pieces, and the share of each cell of a grid that a mask covers."""

import numpy as np
from pycocotools import mask as coco
from scipy.ndimage import binary_fill_holes, label


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


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of what a mask, bool [H, W], holds, as shares of its sides; of an empty one, all.

    Returns:
        float32 [4] in 0..1.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.array([0, 0, 1, 1], np.float32)
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return (edges / np.array([mask.shape[1], mask.shape[0]] * 2)).astype(np.float32)


def main_piece(mask: np.ndarray, place: tuple[int, int] | None = None) -> np.ndarray:
    """One of a mask's connected pieces without its holes; pieces meet at edges, not at corners.

    Args:
        mask: bool [H, W].
        place: row and column; the piece there is meant, or, where there is none, the largest.

    Returns:
        bool [H, W], empty as the mask is.
    """
    pieces, count = label(mask)
    if not count:
        return mask
    there = pieces[place] if place is not None else 0
    return binary_fill_holes(pieces == (there or 1 + np.bincount(pieces.ravel())[1:].argmax()))


def square_about(box: np.ndarray, size: int, margin: float) -> tuple[int, int, int]:
    """The square of whole pixels about a box, moved to lie inside of the image and no larger than it.

    Args:
        box: left, top, right and bottom as shares of the sides (``bounding_box``).
        size: side of the square image in pixels.
        margin: what is added on each side, as a share of the box's longer side.

    Returns:
        Left, top and side in pixels.
    """
    left, top, right, bottom = (float(edge) * size for edge in box)
    side = min(size, max(1, round((1 + 2 * margin) * max(right - left, bottom - top))))
    corner = [min(max(round((low + high - side) / 2), 0), size - side) for low, high in ((left, right), (top, bottom))]
    return corner[0], corner[1], side


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """Share of each cell that each pixel fills along one axis, float32 [cells, pixels]; rows sum to 1."""
    edges = np.arange(cells + 1) * (pixels / cells)
    start, stop = edges[:-1, None], edges[1:, None]
    pixel = np.arange(pixels)[None, :]
    overlap = np.minimum(stop, pixel + 1) - np.maximum(start, pixel)
    return (np.clip(overlap, 0, None) * (cells / pixels)).astype(np.float32)
