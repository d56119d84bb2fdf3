"""Duplicates, found as a comparison of all pairs finds them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medfocus.pipeline.ingest.duplicates import NEAR, PackedPicture, count_near, find_duplicates
from medfocus.stages.likeness import BLANK, hamming, perceptual_hash, pixels_digest


def digest(number: int) -> str:
    return f"{number:032x}" + "0" * 32


@st.composite
def archives(draw: st.DrawFn) -> list[PackedPicture]:
    """Pictures with few different digests; the hash follows from the digest."""
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
    flips = st.sets(st.integers(0, 63), max_size=6)
    pixels = [(draw(st.sampled_from(hashes)), draw(flips)) for _ in range(draw(st.integers(1, 8)))]
    numbers = draw(st.lists(st.integers(0, len(pixels) - 1), max_size=16))
    known = st.none() | st.sampled_from("ab")
    return [
        PackedPicture(
            f"{place}",
            digest(number),
            f"{pixels[number][0] ^ sum(1 << bit for bit in pixels[number][1]):016x}",
            draw(known),
            draw(known),
            draw(st.integers(0, 1)),
        )
        for place, number in enumerate(numbers)
    ]


@settings(deadline=None)
@given(archives())
def test_duplicates_are_what_all_pairs_tell(pictures: Sequence[PackedPicture]) -> None:
    found = find_duplicates(lambda: iter(pictures))
    groups = {one.digest: [other for other in pictures if other.digest == one.digest] for one in pictures}
    assert found.kept.keys() | set(found.kept.values()) == {
        one.image_id for group in groups.values() if len(group) > 1 for one in group
    }
    assert len(pictures) - len(found.kept) == len(groups)
    for group in groups.values():
        left = [one for one in group if one.image_id not in found.kept]
        assert len(left) == 1 and left[0].version == min(one.version for one in group)
        if any(one.label for one in group if one.version == left[0].version):
            assert left[0].label is not None
    shown = [group for group in groups.values() if group[0].likeness not in BLANK]
    assert found.of_several_patients == sum(len({one.patient_id for one in group} - {None}) > 1 for group in shown)
    assert found.of_several_labels == sum(len({one.label for one in group} - {None}) > 1 for group in shown)
    different = {group[0].digest: group[0].likeness for group in groups.values()}
    near = [
        name
        for name, own in different.items()
        if any(hamming(own, other) <= NEAR for place, other in different.items() if place != name)
    ]
    assert found.near == len(near)


def test_near_pictures_of_a_large_archive_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    bits = np.zeros(3000, np.uint64)
    for _ in range(6):
        flips = np.uint64(1) << rng.integers(0, 64, 3000, np.uint64)
        bits ^= np.where(rng.random(3000) < 0.7, flips, np.uint64(0))
    hashes = rng.choice(rng.integers(0, 2**64, 200, np.uint64), 3000) ^ bits
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    np.fill_diagonal(distances, 64)
    assert count_near(hashes) == int((distances <= NEAR).any(axis=1).sum()) > 1000
    assert count_near(np.zeros(0, np.uint64)) == count_near(hashes[:1]) == 0


def test_the_log_counts_and_names_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pictures = [
        PackedPicture("SMITH/2.png", digest(1), "0" * 15 + "3", "P1", "a"),
        PackedPicture("SMITH/1.png", digest(1), "0" * 15 + "3", "P2", "b"),
        PackedPicture("SMITH/3.png", digest(2), "0" * 15 + "1"),
    ]
    found = find_duplicates(lambda: pictures)
    with caplog.at_level(logging.INFO):
        found.log()
    assert found.kept == {"SMITH/2.png": "SMITH/1.png"}
    assert found.as_json() == {"same_pixels": 1, "look_alike": 2, "of_several_patients": 1, "of_several_labels": 1}
    assert "several patients" in caplog.text and "several classes" in caplog.text and "SMITH" not in caplog.text


def test_black_slices_of_several_patients_are_one_picture_and_no_doubt() -> None:
    black = np.zeros((64, 64), np.uint8)
    likeness = perceptual_hash(black)
    pictures = [PackedPicture(f"{n}", pixels_digest(black), likeness, f"P{n}", "ab"[n % 2]) for n in range(4)]
    found = find_duplicates(lambda: pictures)
    assert (len(found.kept), found.of_several_patients, found.of_several_labels) == (3, 0, 0)


def test_pictures_of_a_real_archive_that_are_there_twice(brain_mri: Path) -> None:
    files = sorted(brain_mri.rglob("*.jpg"))
    contents: dict[bytes, list[Path]] = {}
    pictures = []
    for file in files:
        pixels = np.asarray(Image.open(file))
        contents.setdefault(repr(pixels.shape).encode() + pixels.tobytes(), []).append(file)
        name = str(file.relative_to(brain_mri))
        pictures.append(PackedPicture(name, pixels_digest(pixels), perceptual_hash(pixels)))
    found = find_duplicates(lambda: pictures)
    assert len(found.kept) == len(files) - len(contents) > 0 and found.near > 0
