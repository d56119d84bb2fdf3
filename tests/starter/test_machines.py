import numpy as np
import pytest

from medfocus.starter.anatomy import MODALITIES
from medfocus.starter.machines import expose


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_exposure_keeps_the_contrast_of_the_picture(modality: str) -> None:
    """A bright disc stays brighter than its surroundings, and the same random draws give the same image."""
    y, x = np.mgrid[:96, :96]
    disc = (x - 48) ** 2 + (y - 40) ** 2 < 100
    picture = np.where(disc, 0.8, 0.3).astype(np.float32)
    first, again = (expose(np.random.default_rng(3), picture.copy(), modality, 1) for _ in range(2))
    assert first.dtype == np.uint8 and np.array_equal(first, again)
    ring = ((x - 48) ** 2 + (y - 40) ** 2 < 400) & ~disc
    assert first[disc].mean() > first[ring].mean() + 20


def test_a_ct_image_has_a_round_field_that_is_black_outside() -> None:
    image = expose(np.random.default_rng(0), np.full((128, 128), 0.5, np.float32), "CT", 0)
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any() and image[60, 64] > 0
