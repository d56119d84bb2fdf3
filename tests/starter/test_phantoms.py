import csv
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medfocus.starter.phantoms import CLASSES, PRESETS, draw

indices = st.integers(0, 10_000)


@settings(max_examples=25, deadline=None)
@given(indices, st.integers(0, 5), st.sampled_from(PRESETS))
def test_a_phantom_depends_on_its_index_alone(index: int, seed: int, preset: str) -> None:
    first = draw(index, seed=seed, preset=preset, size=64)
    draw(index + 1, seed=seed, preset=preset, size=64)
    again = draw(index, seed=seed, preset=preset, size=64)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.lesions, again.lesions)
    texts = ("label", "modality", "organ", "patient", "site", "caption")
    assert [getattr(first, name) for name in texts] == [getattr(again, name) for name in texts]


@settings(max_examples=40, deadline=None)
@given(indices, st.sampled_from(PRESETS))
def test_lesions_have_the_number_and_the_area_of_their_preset(index: int, preset: str) -> None:
    phantom = draw(index, preset=preset, size=128)
    assert 1 <= len(phantom.lesions) <= 3 and phantom.label in CLASSES
    assert phantom.lesions.any((1, 2)).all()
    union = phantom.lesions.any(0)
    assert union.mean() < (0.03 if preset == "hard" else 0.15)
    if preset == "hard":
        assert union.mean() > 0.001  # the grains of a cluster may lie close together
        parts = np.any([*phantom.anatomy.values()], axis=0)
        assert all((mask & ~parts).any() for mask in phantom.decoys)  # the centre of each is outside the anatomy
    else:
        assert not len(phantom.decoys)
    assert all(mask.shape == (128, 128) and mask.dtype == bool for mask in phantom.anatomy.values())


def test_a_lesion_is_visible_in_the_image() -> None:
    """The mean grey value in the lesions differs from that of the rest of the image by more than noise does."""
    differences = []
    for index in range(40):
        phantom = draw(index)
        mask = phantom.lesions.any(0)
        differences.append(abs(phantom.image[mask].mean() - phantom.image[~mask].mean()))
    assert np.median(differences) > 25


def test_classes_alternate_and_a_patient_has_one_site() -> None:
    phantoms = [draw(index, size=32) for index in range(200)]
    assert set(Counter(phantom.label for phantom in phantoms).values()) == {50}
    sites = defaultdict(set)
    for phantom in phantoms:
        sites[phantom.patient].add(phantom.site)
    assert all(len(sites_of_patient) == 1 for sites_of_patient in sites.values())
    assert len(sites) == 50 and len(set.union(*sites.values())) >= 3
    assert len({phantom.modality for phantom in phantoms}) == 3 and len({phantom.organ for phantom in phantoms}) == 4


def test_healthy_phantoms_have_no_lesion() -> None:
    phantoms = [draw(index, size=64, healthy=1.0) for index in range(8)]
    assert all(not len(phantom.lesions) and phantom.label == "no lesion" for phantom in phantoms)


@pytest.mark.parametrize("wrong", [{"preset": "odd"}, {"size": 8}])
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"use one of|must be"):
        draw(0, **wrong)


def test_a_written_set_is_what_draw_gives(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "medfocus.starter.phantoms",
        str(tmp_path),
        "--start",
        "4",
        "--count",
        "6",
        "--size",
        "64",
    ]
    subprocess.run(command, check=True)
    with (tmp_path / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{index:06d}.png" for index in range(4, 10)]
    for index, row in enumerate(rows, start=4):
        phantom = draw(index, size=64)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / row["file"])), phantom.image)
        mask = np.asarray(Image.open(tmp_path / "masks" / row["file"])) > 0
        assert np.array_equal(mask, phantom.lesions.any(0))
        assert (row["label"], row["patient_id"], row["site"]) == (phantom.label, phantom.patient, phantom.site)
