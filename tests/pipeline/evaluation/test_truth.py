"""Reading labels: shards, label files, and the messages about files that hold no usable labels."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.evaluation.truth import Truth, read_truth
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


def test_two_labels_of_one_image_name_the_image(predictions: Location, tmp_path: Path) -> None:
    """The user, who has to choose between two lines, needs to know the image."""
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,label\nimage-0.png,cyst\nimage-0,solid mass\n")
    assert "lines 2 and 3 give two labels to image-0.png" in error(labels, predictions)


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
