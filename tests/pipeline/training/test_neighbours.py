"""Near-duplicates among images whose patients the tests know and the search does not."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.random_projection import SparseRandomProjection

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.training.folds import group_rows
from medfocus.pipeline.training.neighbours import Neighbours, Sketches, find_neighbours, read_sketches
from medfocus.stages.decode import Decode
from medfocus.stages.tower import ImageTower
from medfocus.starter.phantoms import draw


def sketches(values: np.ndarray, names: list[str] | None = None) -> Sketches:
    digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in values]
    return Sketches(names or [f"i{row:05d}" for row in range(len(values))], values.astype(np.float32), digests)


def patients(count: int, slices: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sketches float32 [count * slices, 512] that vary little within a patient, and the patient of each."""
    random = np.random.default_rng(seed)
    centres = np.repeat(random.normal(size=(count, 512)), slices, axis=0)
    return (centres + 0.3 * random.normal(size=centres.shape)).astype(np.float32), np.repeat(np.arange(count), slices)


def grouped(neighbours: Neighbours, labels: dict[str, str], folds: int = 3) -> np.ndarray:
    table = {"image_id": list(labels), "label": list(labels.values()), "patient_id": [None] * len(labels)}
    return np.array(group_rows(table, neighbours, folds)[0])


@pytest.mark.parametrize("classes_of_a_patient", [1, 2])
def test_slices_of_one_patient_are_joined_and_others_are_not(classes_of_a_patient: int) -> None:
    values, patient = patients(80, 5)
    classes = (patient + (np.arange(len(patient)) % classes_of_a_patient)) % 4
    archive = sketches(values)
    labels = {image: f"c{one}" for image, one in zip(archive.image_ids, classes, strict=True)}
    group = grouped(find_neighbours(archive, labels), labels)
    assert 70 <= len(set(group)) <= 80
    assert all(len(set(group[patient == one])) == 1 for one in range(80))


@pytest.mark.parametrize("count", [20, 100, 500])
def test_images_of_as_many_patients_stay_apart(count: int) -> None:
    archive = sketches(np.random.default_rng(1).normal(size=(count, 512)))
    labels = {image: f"c{row % 4}" for row, image in enumerate(archive.image_ids)}
    assert len(set(grouped(find_neighbours(archive, labels), labels))) >= 0.85 * count


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 5), st.integers(2, 4))
def test_the_order_of_rows_does_not_matter_and_copies_are_found(
    count: int, slices: int, copies: int, folds: int
) -> None:
    values, _ = patients(count, slices, seed=count)
    values = np.concatenate([values, np.repeat(values[:1], copies, axis=0)])
    archive = sketches(values)
    labels = {image: f"c{row % 3}" for row, image in enumerate(archive.image_ids)}
    neighbours = find_neighbours(archive, labels)
    shuffled = np.random.default_rng(copies).permutation(len(values))
    again = find_neighbours(sketches(values[shuffled], [archive.image_ids[row] for row in shuffled]), labels)
    assert list(neighbours.pairs) == list(again.pairs) and neighbours.compared == again.compared
    assert sum(pair.identical for pair in neighbours.pairs) == copies
    group = grouped(neighbours, labels, folds)
    assert len(set(group[[0, *range(count * slices, len(values))]])) == 1


@pytest.mark.parametrize("values", [np.zeros((40, 512)), np.repeat(np.eye(2, 512), 20, axis=0)])
def test_too_few_different_images_give_identical_pairs_only(values: np.ndarray) -> None:
    archive = sketches(values)
    neighbours = find_neighbours(archive, dict.fromkeys(archive.image_ids, "c"))
    assert not neighbours.compared and len(neighbours.pairs) == 40 - len(np.unique(values, axis=0))


def test_only_the_rows_of_training_are_read_and_a_file_may_be_empty(tmp_path: Path) -> None:
    """A shard whose labelled images are all in quarantine has an empty file; rows of the split test are left out."""
    schema = records.feature_schema(33, 24, region=False)
    values = np.random.default_rng(0).normal(size=(4, 33, 24)).astype(np.float16)
    rows = {
        "image_id": [f"i{row}" for row in range(4)],
        "label": ["c"] * 4,
        "split": ["train", "test", None, "train"],
        "mask": [{"size": [1, 1], "counts": "1"}] * 4,
        "mask_score": [0.5] * 4,
        "model_key": ["x"] * 4,
        "tokens": pa.FixedShapeTensorArray.from_numpy_ndarray(values),
        "focus": pa.FixedShapeTensorArray.from_numpy_ndarray(values[:, 1:, 0].copy()),
    }
    full = pa.table([rows.get(field.name, pa.nulls(4, field.type)) for field in schema], schema=schema)
    for number, table in enumerate((schema.empty_table(), full.slice(0, 2), full.slice(2))):
        (tmp_path / f"{number}.parquet").write_bytes(records.encode(table))
    read = read_sketches(locate(str(tmp_path), StorageSection()), {"i0", "i2", "i3"})
    flat = values[[0, 2, 3], 1:].reshape(3, -1).astype(np.float32)
    expected = SparseRandomProjection(512, random_state=0).fit(flat).transform(flat)
    assert list(read.image_ids) == ["i0", "i2", "i3"] and len(set(read.digests)) == 3
    np.testing.assert_allclose(read.values, expected, rtol=1e-4, atol=1e-5)


def tokens(images: list[bytes], clip: torch.nn.Module) -> Sketches:
    """Sketches of images as ``embed`` and ``train`` compute them, without regions."""
    tower = ImageTower(clip, 4).eval()
    batch = {
        "image_id": np.array([f"i{row:03d}" for row in range(len(images))], object),
        "image": np.array(images, object),
        "media_type": np.full(len(images), "image/png", object),
    }
    decoded = Decode(size=224, max_pixels=10**8)(batch)
    assert not any(decoded["error"])
    with torch.inference_mode():
        lower = tower.lower(tower.normalise(torch.from_numpy(np.stack(decoded["pixels"])))).half().numpy()
    flat = lower[:, 1:].reshape(len(lower), -1).astype(np.float32)
    return sketches(SparseRandomProjection(512, random_state=0).fit_transform(flat))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def near_copy(image: Image.Image, step: int) -> Image.Image:
    """An image as a nearby slice might look: turned, shifted, enlarged, and of another brightness."""
    width, height = image.size
    enlarged = image.resize((width * (100 + step) // 100, height * (100 + step) // 100))
    turned = enlarged.rotate(step, translate=(step, -step))
    return turned.crop((0, 0, width, height)).point(lambda grey: grey * (1 - 0.04 * step))


def recall_and_precision(group: np.ndarray, patient: np.ndarray) -> tuple[float, float]:
    one, other = np.triu_indices(len(group), 1)
    joined, same = group[one] == group[other], patient[one] == patient[other]
    return joined[same].mean(), same[joined].mean()


def test_phantoms_and_their_near_copies(starter_clip: torch.nn.Module) -> None:
    drawn = [draw(index, seed=7, size=128) for index in range(48)]
    images, patient = [], []
    for number, phantom in enumerate(drawn):
        image = Image.fromarray(phantom.image)
        slices = [image] + [near_copy(image, step) for step in range(1, 1 + number % 3)]
        images += [png(one) for one in slices]
        patient += [number] * len(slices)
    archive = tokens(images, starter_clip)
    labels = {image: drawn[number].label for image, number in zip(archive.image_ids, patient, strict=True)}
    recall, precision = recall_and_precision(grouped(find_neighbours(archive, labels), labels), np.array(patient))
    assert recall > 0.9 and precision > 0.4


def test_real_slices_and_their_near_copies(brain_mri: Path, starter_clip: torch.nn.Module) -> None:
    files = [file for folder in sorted((brain_mri / "train").iterdir()) for file in sorted(folder.iterdir())[::8]]
    images, patient = [], []
    for number, file in enumerate(files):
        image = Image.open(file).convert("L").resize((224, 224))
        slices = [image] + ([near_copy(image, 1)] if number % 2 else [])
        images += [png(one) for one in slices]
        patient += [number] * len(slices)
    archive = tokens(images, starter_clip)
    labels = {image: files[number].parent.name for image, number in zip(archive.image_ids, patient, strict=True)}
    group = grouped(find_neighbours(archive, labels), labels)
    assert recall_and_precision(group, np.array(patient))[0] > 0.9
    assert np.unique(group, return_counts=True)[1].max() < len(group) / 8
