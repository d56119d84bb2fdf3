"""Reading predictions and joining them with labels: every wrong file is one clear line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.evaluation.predictions import evaluation_set, read_predictions
from medfocus.pipeline.evaluation.truth import read_truth
from tests.pipeline.evaluation.archive import (
    CLASSES,
    draw_rows,
    join,
    join_error,
    rewrite_last,
    write_csv,
    write_predictions,
    write_shards,
)


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def test_predictions_are_joined_with_their_labels(out: str, tmp_path: Path) -> None:
    """Of two files; some images have no label, no patient or no site, and labels are in another order."""
    rows = [row if index % 4 else row | {"patient_id": None} for index, row in enumerate(draw_rows())]
    output = write_predictions(out, [rows[:50], rows[50:]])
    labelled = rows[:80]
    labels = write_csv(tmp_path / "labels.csv", labelled[::-1])
    truth = read_truth(locate(labels, StorageSection()), output.rows)
    files, classes, version = read_predictions(output.rows, truth)
    assert (classes, version, sorted(file.row_count for file in files)) == (CLASSES, "lesions/1", [40, 50])
    sample, sites = evaluation_set(files, classes, truth, output.rows.uri)
    expected = {row["image_id"]: row for row in labelled}
    images = list(truth.rows)
    order = np.concatenate([file.truth_rows for file in files])
    assert sorted(order) == list(range(80))
    matched = [expected[images[row]] for row in order]
    assert [CLASSES[index] for index in sample.truth] == [row["truth"] for row in matched]
    assert np.array_equal(sample.probabilities, np.array([row["probabilities"] for row in matched], np.float32))
    assert sample.accepted.tolist() == [row["decision"] == "accept" for row in matched]
    assert sites.tolist() == [row["site"] or "" for row in matched]
    for one, other in ((first, second) for first in range(80) for second in range(first)):
        patients = matched[one]["patient_id"], matched[other]["patient_id"]
        same = patients[0] is not None and patients[0] == patients[1]
        assert (sample.patients[one] == sample.patients[other]) == same


def without_classes(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(records.PREDICTION.metadata)


def replace_column(name: str, values: Callable[[pa.Table], list]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        return table.set_column(table.schema.get_field_index(name), field, pa.array(values(table), field.type))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda table: table.drop_columns(["decision"]), "column decision is missing"),
        (without_classes, "its metadata names no classes"),
        (replace_column("model_version", lambda table: ["lesions/2"] * len(table)), "predictions of 2 model versions"),
        (
            replace_column("probabilities", lambda table: [[0.5, 0.5]] * len(table)),
            "column probabilities is not 3 numbers",
        ),
        (
            replace_column("probabilities", lambda table: [[0.1, float("nan"), 0.1]] * len(table)),
            "column probabilities is not 3 numbers",
        ),
        (replace_column("image_id", lambda table: ["image-0.png"] * len(table)), "predicted more than once"),
    ],
)
def test_one_wrong_file_is_one_clear_line(
    out: str, tmp_path: Path, change: Callable[[pa.Table], pa.Table], expected: str
) -> None:
    """The last file is wrong: checking the first alone does not find it."""
    rows = draw_rows()
    rewrite_last(write_predictions(out, [rows[:45], rows[45:]]), change)
    assert expected in join_error(out, write_csv(tmp_path / "labels.csv", rows))


def test_classes_in_another_order_are_refused(out: str, tmp_path: Path) -> None:
    rows = draw_rows()
    write_predictions(out, [rows[:45], rows[45:]], [CLASSES, CLASSES[::-1]])
    message = join_error(out, write_csv(tmp_path / "labels.csv", rows))
    assert "different classes, or in another order" in message


def test_a_file_that_is_no_parquet_file_is_named(out: str, tmp_path: Path) -> None:
    output = write_predictions(out, [draw_rows()])
    name = output.rows.files()[0]
    (output.rows / name).write(b"nothing")
    message = join_error(out, write_csv(tmp_path / "labels.csv", draw_rows()))
    assert f"{name}: not a whole Parquet file" in message


def test_missing_predictions_are_one_clear_line(out: str, tmp_path: Path) -> None:
    labels = write_csv(tmp_path / "labels.csv", draw_rows())
    assert "no predictions; run medfocus score" in join_error(str(tmp_path / "absent"), labels)
    write_predictions(out, [[]], quarantined=3)
    assert "every image is in quarantine" in join_error(out, labels)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("tumour", "label 'tumour' is no class of the model ('cyst', 'ring lesion',"),
        ("Cyst", "label 'Cyst' is no class of the model, though it looks like 'cyst'"),
        ("\u0441yst", r"label '\u0441yst' is no class of the model, though it looks like 'cyst'"),  # Cyrillic
    ],
)
def test_a_label_that_is_no_class_is_named(out: str, tmp_path: Path, label: str, expected: str) -> None:
    write_predictions(out, [draw_rows()])
    labels = tmp_path / "labels.csv"
    labels.write_text(f"image_id,label\nimage-0.png,{label}\n", encoding="utf-8")
    message = join_error(out, str(labels))
    assert message.startswith(f"{labels}: {expected}") and "image-0" not in message


def test_labels_of_another_archive_are_refused(out: str, tmp_path: Path) -> None:
    write_predictions(out, [draw_rows()])
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,label\nPATIENT-9.png,cyst\n")
    message = join_error(out, str(labels))
    assert "names none of the predicted images" in message and "PATIENT" not in message


def test_classes_that_differ_in_blanks_form_or_zeros_are_one(out: str, tmp_path: Path) -> None:
    """On either side: an older model may have a class with a blank at its end."""
    names = ("cafe\u0301 ", "1.0", "x  y")
    rows = [
        row | {"truth": names[index % 3], "label": names[0], "probabilities": [0.6, 0.2, 0.2]}
        for index, row in enumerate(draw_rows(9))
    ]
    write_predictions(out, [rows], [names])
    spellings = ("caf\u00e9", "1", "\u00a0x y")
    lines = [f"{row['image_id'].upper()};{spellings[index % 3]}" for index, row in enumerate(rows)]
    labels = tmp_path / "labels.csv"
    labels.write_bytes("\r".join(["FILE;Label", *lines]).encode("utf-16"))
    for place in (str(labels), write_shards(str(tmp_path / "shards"), rows)):
        assert join(out, place).truth.tolist() == [index % 3 for index in range(9)]
