"""The digest of the same pixels and the hash of like ones, compared with hashlib and imagehash."""

import hashlib
from pathlib import Path

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image, ImageEnhance

from medfocus.stages.likeness import BLANK, hamming, perceptual_hash, pixels_digest

pictures = npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def picture(seed: int, side: int = 300) -> np.ndarray:
    """A smooth grey picture with some shapes."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


@given(pictures, pictures)
def test_pictures_have_one_digest_if_and_only_if_they_are_equal(one: np.ndarray, other: np.ndarray) -> None:
    assert (pixels_digest(one) == pixels_digest(other)) == np.array_equal(one, other)
    assert len(pixels_digest(one)) == 64


@given(pictures, st.sampled_from(["rgb", "order", "slice", "reversed"]))
def test_how_pixels_lie_in_memory_does_not_matter(grey: np.ndarray, how: str) -> None:
    other = {
        "rgb": lambda: np.stack([grey] * 3, axis=2),
        "order": lambda: np.asfortranarray(grey),
        "slice": lambda: np.repeat(grey, 2, axis=1)[:, ::2],
        "reversed": lambda: grey[::-1].copy()[::-1],
    }[how]()
    assert pixels_digest(other) == pixels_digest(grey)


def test_colour_shape_and_depth_matter() -> None:
    grey = picture(0)
    colour = np.stack([grey, grey, 255 - grey], axis=2)
    others = [grey, colour, colour[:, :, ::-1], grey.reshape(150, 600), grey.astype(np.uint16), grey.T]
    assert len({pixels_digest(other) for other in others}) == len(others)
    wide = grey.astype(np.uint16) * 257
    assert pixels_digest(wide) == pixels_digest(wide.astype(">u2"))
    expected = hashlib.sha256(b"(300, 300) |u1" + grey.tobytes()).hexdigest()
    assert pixels_digest(grey) == expected


@pytest.mark.parametrize("side", [8, 64, 127, 300, 1024])
def test_the_hash_is_that_of_imagehash_but_for_few_bits(side: int) -> None:
    for seed in range(20):
        pixels = picture(seed, side)
        assert hamming(perceptual_hash(pixels), str(imagehash.phash(Image.fromarray(pixels)))) <= 2
        assert len(perceptual_hash(pixels)) == 16


def test_like_pictures_are_near_and_others_are_not() -> None:
    for seed in range(20):
        image = Image.fromarray(picture(seed))
        own = perceptual_hash(np.asarray(image))
        like = [
            image.resize((200, 200), Image.Resampling.BICUBIC),
            ImageEnhance.Brightness(image).enhance(0.9),
            image.convert("RGB"),
        ]
        assert all(hamming(own, perceptual_hash(np.asarray(other))) <= 4 for other in like)
        assert hamming(own, perceptual_hash(picture(seed + 100))) > 8
    wide = picture(0).astype(np.uint16) << 8
    assert perceptual_hash(wide) == perceptual_hash(picture(0))


def test_pictures_of_one_colour_have_hashes_of_their_own() -> None:
    grey = {perceptual_hash(np.full((50, 70), value, np.uint8)) for value in range(256)}
    colour = {perceptual_hash(np.full((50, 70, 3), value, np.uint8)) for value in ((9, 0, 0), (0, 200, 3))}
    assert grey | colour == BLANK
    assert not BLANK & {perceptual_hash(picture(seed)) for seed in range(50)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (2000, 3), (64, 64, 3)])
def test_pictures_of_any_shape_have_a_hash(shape: tuple[int, ...]) -> None:
    assert len(perceptual_hash(np.zeros(shape, np.uint8))) == 16


def test_a_real_picture_stored_anew_is_the_same_or_near(brain_mri: Path, tmp_path: Path) -> None:
    for file in sorted((brain_mri / "test").rglob("*.jpg"))[::25]:
        pixels = np.asarray(Image.open(file).convert("L"))
        Image.fromarray(pixels).save(tmp_path / "same.png")
        Image.fromarray(pixels).save(tmp_path / "near.jpg", quality=60)
        same, near = (np.asarray(Image.open(tmp_path / name)) for name in ("same.png", "near.jpg"))
        assert pixels_digest(same) == pixels_digest(pixels) != pixels_digest(near)
        assert hamming(perceptual_hash(near), perceptual_hash(pixels)) <= 4
