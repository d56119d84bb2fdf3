import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocus.stages.augment import View, augment
from medfocus.stages.masks import bounding_box

SIZE = 96


def bright_square(left: int, top: int, side: int) -> View:
    """A bright square on a dark background, with its mask and its box."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + side, left : left + side] = True
    pixels = np.where(mask, 220, 40).astype(np.uint8)[..., None]
    return View(pixels, mask.astype(np.float32), bounding_box(mask))


@settings(deadline=None)
@given(st.integers(20, 50), st.integers(20, 50), st.integers(12, 24), st.integers(1, 9))
def test_mask_and_box_are_transformed_with_the_image(left: int, top: int, side: int, number: int) -> None:
    view = augment(bright_square(left, top, side), "name", number)
    pixels = view.pixels[..., 0].astype(float)
    bright = pixels > pixels.max() / 2
    masked = view.cover > 0.5
    assert (bright & masked).sum() > 0.85 * (bright | masked).sum()
    x0, y0, x1, y1 = view.box * SIZE
    rows, columns = np.nonzero(masked)
    assert x0 - 1 <= columns.min() and columns.max() <= x1 + 1 and y0 - 1 <= rows.min() and rows.max() <= y1 + 1


def test_a_view_depends_on_its_name_and_its_number_alone() -> None:
    view = bright_square(30, 40, 20)
    one, other = augment(view, "a", 1), augment(view, "a", 2)
    same = augment(view, "a", 1)  # after another draw
    assert np.array_equal(one.pixels, same.pixels) and np.array_equal(one.box, same.box)
    assert not np.array_equal(one.pixels, other.pixels)
    assert not np.array_equal(one.pixels, augment(view, "b", 1).pixels)
