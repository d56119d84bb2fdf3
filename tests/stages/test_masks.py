import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medfocus.stages.masks import bounding_box, cover, decode_mask, encode_mask, main_piece, square_about

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=23))


@given(masks)
def test_run_length_codes_round_trip(mask: np.ndarray) -> None:
    assert np.array_equal(decode_mask(encode_mask(mask), *mask.shape), mask)


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO counts by definition: down the columns, starting with the zeros."""
    flat, counts, value = mask.flatten(order="F"), [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = bool(pixel)
        counts[-1] += 1
    return counts


@given(masks)
def test_run_length_codes_are_those_of_coco(mask: np.ndarray) -> None:
    from pycocotools import mask as coco

    plain = {"size": list(mask.shape), "counts": runs(mask)}
    assert coco.frPyObjects(plain, *mask.shape)["counts"].decode() == encode_mask(mask)


@given(masks, st.integers(1, 9), st.integers(1, 9))
def test_cover_equals_the_exact_area(mask: np.ndarray, rows: int, columns: int) -> None:
    """Against a brute-force count on a grid so fine that every cell and pixel has whole sub-pixels."""
    fine = np.kron(mask, np.ones((rows, columns)))
    height, width = mask.shape
    expected = fine.reshape(rows, height, columns, width).mean(axis=(1, 3))
    assert np.allclose(cover(mask, rows, columns), expected, atol=1e-5)


def test_cover_is_not_shifted_by_half_a_pixel() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    assert np.array_equal(cover(mask, 4, 4), mask.astype(np.float32))
    assert np.array_equal(cover(mask, 2, 2), [[0, 0.25], [0, 0]])


@given(masks)
def test_a_bounding_box_is_the_smallest_that_holds_the_mask(mask: np.ndarray) -> None:
    height, width = mask.shape
    left, top, right, bottom = np.round(bounding_box(mask) * [width, height, width, height]).astype(int)
    assert mask[top:bottom, left:right].sum() == mask.sum()
    if mask.any():
        inside = mask[top:bottom, left:right]
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    else:
        assert (left, top, right, bottom) == (0, 0, width, height)


@given(masks, st.integers(1, 300), st.floats(0, 1))
def test_a_square_about_a_box_holds_the_box_and_lies_inside_the_image(
    mask: np.ndarray, size: int, margin: float
) -> None:
    box = bounding_box(mask)
    left, top, side = square_about(box, size, margin)
    assert left >= 0 and top >= 0 and side >= 1 and max(left, top) + side <= size
    if margin >= 0.02:  # the square has whole pixels: without a margin a side may lose half of one
        margin_in_pixels = margin * float(max(box[2:] - box[:2])) * size
        slack = max(0.0, 1.5 - margin_in_pixels)
        assert left - slack <= box[0] * size and box[2] * size <= left + side + slack
        assert top - slack <= box[1] * size and box[3] * size <= top + side + slack


def connected(free: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels that are connected to one pixel over edges, by definition."""
    reached, todo = np.zeros_like(free), [(row, column)]
    while todo:
        row, column = todo.pop()
        inside = 0 <= row < free.shape[0] and 0 <= column < free.shape[1]
        if inside and free[row, column] and not reached[row, column]:
            reached[row, column] = True
            todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return reached


@settings(deadline=None)
@given(masks)
def test_the_main_piece_is_the_largest_without_holes(mask: np.ndarray) -> None:
    piece = main_piece(mask)
    if not mask.any():
        assert not piece.any()
        return
    left, pieces = mask.copy(), []
    while left.any():
        pieces.append(connected(mask, *np.argwhere(left)[0]))
        left &= ~pieces[-1]
    largest = max(part.sum() for part in pieces)
    assert any(part.sum() == largest and not (part & ~piece).any() for part in pieces)
    framed = np.pad(~piece, 1, constant_values=True)
    assert connected(framed, 0, 0).sum() == framed.sum()  # no hole: the outside is connected to the border
    assert connected(piece, *np.argwhere(piece)[0]).sum() == piece.sum()  # one piece
