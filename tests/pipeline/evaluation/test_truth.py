"""Reading labels: shards, label files, and the messages about files that hold no usable labels."""

import csv
import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.evaluation.truth import Naming, Truth, read_truth
from medfocus.pipeline.labels.class_mapping import ClassMapping
from tests.pipeline.evaluation.archive import draw_rows, write_csv, write_predictions, write_shards


@pytest.fixture
def predictions(tmp_path: Path) -> Location:
    """The folder of the predictions of 90 images in two files."""
    rows = draw_rows()
    return write_predictions(str(tmp_path / "out"), [rows[:30], rows[30:]]).rows


def read(labels: str | Path, predictions: Location) -> Truth:
    return read_truth(locate(str(labels), StorageSection()), predictions)


def label_of_image(truth: Truth) -> dict[str, str]:
    return {image: truth.names[truth.codes[row]] for image, row in truth.rows.items()}


def error(labels: str | Path, predictions: Location) -> str:
    """The message, which must be one line, of the UsageError that reading the labels raises."""
    with pytest.raises(UsageError) as caught:
        read(labels, predictions)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("column", ["image_id", "file"])
def test_a_label_file_and_shards_give_the_same_labels(predictions: Location, tmp_path: Path, column: str) -> None:
    rows = draw_rows()
    expected = {row["image_id"]: row["truth"] for row in rows}
    of_file = read(write_csv(tmp_path / "labels.csv", rows, column), predictions)
    of_shards = read(write_shards(str(tmp_path / "shards"), rows), predictions)
    assert label_of_image(of_file) == label_of_image(of_shards) == expected
    assert of_file.names == of_shards.names == sorted(set(expected.values()))
    assert of_file.digest != of_shards.digest and of_file.unpredicted == of_shards.unpredicted == 0


def test_labels_of_images_without_a_prediction_are_counted(predictions: Location, tmp_path: Path) -> None:
    """Shards keep a row for such a label; a label file, whose names are matched with images, only counts it."""
    rows = draw_rows()
    absent = [row | {"image_id": f"absent-{number}.png"} for number, row in enumerate(rows[:7])]
    of_file = read(write_csv(tmp_path / "labels.csv", rows + absent), predictions)
    of_shards = read(write_shards(str(tmp_path / "shards"), rows + absent), predictions)
    assert (len(of_file.rows), of_file.unpredicted) == (90, 7)
    assert (len(of_shards.rows), of_shards.unpredicted) == (97, 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("image_id,label\nimage-0.png,\n", "holds no label"),
        ("name,label\nimage-0.png,cyst\n", "the header must name file (or image_id) and label"),
        ("image_id,label\nimage-0.png,cyst\nPATIENT-9.png,cyst,x\n", "line 3 has 3 values, the header has 2"),
        ("", "column file is missing"),
        (b"image_id,label\nimage-0.png,\xff\xc3\xa9\n", "line 2 is not UTF-8, though others are"),
        (None, "neither shards nor a label file"),
    ],
)
def test_a_file_without_usable_labels_is_one_clear_line(
    predictions: Location, tmp_path: Path, content: str | bytes | None, expected: str
) -> None:
    labels = tmp_path / "labels.csv"
    if content is not None:
        labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = error(labels, predictions)
    assert message.startswith(str(labels)) and expected in message
    assert "PATIENT" not in message and "image-0" not in message


def test_a_folder_without_a_manifest_is_refused(predictions: Location, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "neither shards nor a label file" in error(tmp_path / "folder", predictions)


def test_two_labels_of_one_image_name_the_lines(predictions: Location, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,label\nimage-0.png,cyst\nimage-0,solid mass\n")
    assert error(labels, predictions) == f"{labels}: lines 2 and 3 give one image two labels; keep one of them"


def pseudonym(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind} {text}".encode()).hexdigest()


@pytest.mark.parametrize("front", ["", "./", "D:\\\\export\\\\", "/mnt/archive/"])
def test_names_of_files_lead_to_pseudonyms_and_to_all_frames(tmp_path: Path, front: str) -> None:
    """Names in the label file become names of items, as ``pack`` made them; a file has one image or two frames."""
    rows = [row | {"file": row["image_id"]} for row in draw_rows()]
    for number, row in enumerate(rows):
        row["file"] = f"s{number // 20}/{number // 2 * 2 if number < 20 else number}.dcm"
        row["image_id"] = pseudonym("path", row["file"]) + (f"-{number % 2}" if number < 20 else "")
    predictions = write_predictions(str(tmp_path / "out"), [rows[:30], rows[30:]]).rows
    truths = {row["file"]: "cyst" if number % 3 else "solid mass" for number, row in enumerate(rows)}
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{front}{file},{label}\n" for file, label in truths.items()))
    naming = Naming(pseudonym, lambda path: [pseudonym("path", path)], lambda image: image.partition("-")[0])
    truth = read_truth(locate(str(labels), StorageSection()), predictions, naming)
    assert label_of_image(truth) == {row["image_id"]: truths[row["file"]] for row in rows}
    assert truth.unpredicted == 0


def test_patients_of_a_label_file_become_pseudonyms(tmp_path: Path) -> None:
    rows = [row | {"patient_id": pseudonym("patient", f"P{n // 10}")} for n, row in enumerate(draw_rows())]
    predictions = write_predictions(str(tmp_path / "out"), [rows]).rows
    labels = tmp_path / "labels.csv"
    labels.write_text("patient_id,label\n" + "".join(f"P{n},{'ab'[n % 2]}\n" for n in range(9)))
    truth = read_truth(locate(str(labels), StorageSection()), predictions, Naming(pseudonym))
    assert label_of_image(truth) == {row["image_id"]: "ab"[n // 10 % 2] for n, row in enumerate(rows)}


def test_labels_of_a_file_are_mapped(predictions: Location, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\nimage-0.png,c\nimage-1.png,?\nimage-2.png,cyst\n")
    naming = Naming(mapping=ClassMapping({"c": "cyst", "?": None}))
    truth = read_truth(locate(str(tmp_path / "labels.csv"), StorageSection()), predictions, naming)
    assert label_of_image(truth) == {"image-0.png": "cyst", "image-2.png": "cyst"}


def test_the_labels_of_one_split_are_read_from_shards_and_from_files(tmp_path: Path) -> None:
    rows = [row | {"split": ("train", "test", None)[number % 3]} for number, row in enumerate(draw_rows())]
    predictions = write_predictions(str(tmp_path / "out"), [rows[:30], rows[30:]]).rows
    labels = write_csv(tmp_path / "labels.csv", rows)
    shards = write_shards(str(tmp_path / "shards"), rows)
    expected = {row["image_id"]: row["truth"] for row in rows if row["split"] == "test"}
    for place in (labels, shards):
        truth = read_truth(locate(place, StorageSection()), predictions, split="test")
        assert label_of_image(truth) == expected
    with pytest.raises(UsageError, match="no labelled image is of the split validation; correct --split"):
        read_truth(locate(shards, StorageSection()), predictions, split="validation")


def test_a_large_file_with_reports_of_several_lines_is_read(predictions: Location, tmp_path: Path) -> None:
    rows = draw_rows()
    report = 'Findings:\n"none", ' * 20
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "report", "label"])
        writer.writerows([f"other-{index}.png", report, "cyst"] for index in range(30_000))
        writer.writerows([row["image_id"], report, row["truth"]] for row in rows)
    truth = read(tmp_path / "labels.csv", predictions)
    assert label_of_image(truth) == {row["image_id"]: row["truth"] for row in rows}
    assert truth.unpredicted == 30_000


def test_shards_without_a_label_column_are_named(predictions: Location, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_shards(str(shards), draw_rows())
    damaged = shards / "shard-1.parquet"
    pq.write_table(pq.read_table(damaged).drop_columns(["label"]), damaged)
    assert "shard-1.parquet: column label is missing" in error(shards, predictions)
