"""Binary masks: COCO run-length codes, boxes, connected pieces, and the cover of the cells of a grid."""

import numpy as np
from pycocotools import mask as coco
from scipy.ndimage import binary_fill_holes, label


def encode_mask(mask: np.ndarray) -> str:
    """COCO compressed run-length counts of a mask, bool [H, W]."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """The mask, bool [height, width], of COCO compressed run-length counts; height and width are in pixels."""
    mask: np.ndarray = coco.decode({"size": [int(height), int(width)], "counts": counts.encode("ascii")})
    return mask.astype(bool)


def cover(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The exact share of each cell of a grid that the mask covers, also where cell borders cut through pixels.

    Args:
        mask: bool [H, W].
        rows: rows of the grid, which spans the whole mask.
        columns: columns of the grid.

    Returns:
        Float32 [rows, columns] in 0..1.
    """
    down = _overlaps(mask.shape[0], rows)
    across = _overlaps(mask.shape[1], columns)
    shares: np.ndarray = np.clip(down @ mask.astype(np.float32) @ across.T, 0, 1)
    return shares


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """The bounding box of a mask.

    Args:
        mask: bool [H, W].

    Returns:
        Float32 [4] in 0..1: left, top, right and bottom as shares of the sides. The box of an empty mask is the whole.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.array([0, 0, 1, 1], np.float32)
    edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    box: np.ndarray = (edges / np.array([mask.shape[1], mask.shape[0]] * 2)).astype(np.float32)
    return box


def main_piece(mask: np.ndarray, place: tuple[int, int] | None = None) -> np.ndarray:
    """One connected piece of a mask, with its holes filled. Pixels that meet only at a corner are not connected.

    Args:
        mask: bool [H, W].
        place: row and column in pixels. The piece at this place is returned; without one there, the largest piece.

    Returns:
        Bool [H, W]. The piece of an empty mask is empty.
    """
    pieces, count = label(mask)
    if not count:
        return mask
    piece_at_place = pieces[place] if place is not None else 0
    piece: np.ndarray = binary_fill_holes(pieces == (piece_at_place or 1 + np.bincount(pieces.ravel())[1:].argmax()))
    return piece


def square_about(box: np.ndarray, size: int, margin: float) -> tuple[int, int, int]:
    """The square of whole pixels about a box. It is moved to lie inside the image and is at most as large.

    Args:
        box: float [4] in 0..1, left, top, right and bottom as shares of the sides (``bounding_box``).
        size: side of the square image in pixels.
        margin: what the square adds on each side, as a share of the longer side of the box.

    Returns:
        Left, top and side in pixels.
    """
    left, top, right, bottom = (float(edge) * size for edge in box)
    side = min(size, max(1, round((1 + 2 * margin) * max(right - left, bottom - top))))
    corner = [min(max(round((low + high - side) / 2), 0), size - side) for low, high in ((left, right), (top, bottom))]
    return corner[0], corner[1], side


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """The share of each cell that each pixel fills along one axis, float32 [cells, pixels]; rows sum to 1."""
    edges = np.arange(cells + 1) * (pixels / cells)
    start, stop = edges[:-1, None], edges[1:, None]
    pixel = np.arange(pixels)[None, :]
    overlap = np.minimum(stop, pixel + 1) - np.maximum(start, pixel)
    shares: np.ndarray = (np.clip(overlap, 0, None) * (cells / pixels)).astype(np.float32)
    return shares
