"""Evaluation of predictions written here, so that what it must find is known."""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from medfocus.pipeline.commands import evaluate
from medfocus.pipeline.config import Config, StorageSection, load_config
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import PREDICTIONS, Output
from medfocus.pipeline.data.manifest import Manifest, ShardEntry, write_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError

CLASSES = ("cyst", "ring lesion", "solid mass")


def archive(rows: int = 90, seed: int = 0) -> list[dict[str, Any]]:
    """Predictions with their ``truth``: three images a patient, two sites and some rows without one."""
    random = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        truth = int(random.integers(3))
        logits = random.normal(size=3) + 1.5 * np.eye(3)[truth]
        probabilities = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
        made.append(
            {
                "image_id": f"image-{row}.png",
                "patient_id": f"PATIENT-{row // 3}",
                "site": (None, "north", "south")[row % 3],
                "label": CLASSES[int(probabilities.argmax())],
                "probabilities": probabilities.tolist(),
                "confidence": float(probabilities.max()),
                "decision": "accept" if probabilities.max() > 0.6 else "refer",
                "mask": {"size": [1, 1], "counts": "1"},
                "mask_score": 0.5,
                "model_version": "lesions/1",
                "truth": CLASSES[truth],
            }
        )
    return made


def write_predictions(
    out: str,
    parts: Sequence[Sequence[dict[str, Any]]],
    classes: Sequence[Sequence[str]] | None = None,
    quarantined: int = 0,
    finished: bool = True,
) -> Output:
    """What ``score`` leaves: a file for each part, ``quarantined`` rows beside the first."""
    output = Output(locate(out, StorageSection()), PREDICTIONS)
    shards = [
        ShardEntry(f"{index}.parquet", len(part), 1, hashlib.sha256(f"{index}".encode()).hexdigest())
        for index, part in enumerate(parts)
    ]
    output.begin({}, Manifest(tuple(shards)))
    for index, (shard, part) in enumerate(zip(shards, parts, strict=True)):
        schema = records.prediction_schema(classes[index] if classes else CLASSES)
        refused = [
            {"image_id": f"bad-{row}", "source_uri": "x", "stage": "decode", "error": "EmptyImage", "message": "empty"}
            for row in range(quarantined if index == 0 else 0)
        ]
        kept = [{name: row[name] for name in schema.names} for row in part]
        output.commit(
            shard.sha256,
            pa.Table.from_pylist(kept, schema=schema),
            pa.Table.from_pylist(refused, schema=records.QUARANTINE),
        )
    output.update(finished=finished)
    return output


def write_csv(path: Path, rows: Sequence[dict[str, Any]], column: str = "image_id") -> str:
    path.write_text(f"{column},label\n" + "".join(f"{row['image_id']},{row['truth']}\n" for row in rows))
    return str(path)


def write_shards(prefix: str, rows: Sequence[dict[str, Any]]) -> str:
    """Labelled shards, two of them, whose images are not images: evaluation must not look."""
    entries = []
    for index, part in enumerate((rows[:40], rows[40:])):
        known = [
            {
                "image_id": row["image_id"],
                "image": b"?",
                "media_type": "image/png",
                "label": row["truth"],
                "source_uri": "x",
                "sha256": "x",
            }
            for row in part
        ]
        content = records.encode(pa.Table.from_pylist(known, schema=records.SHARD))
        name = f"shard-{index}.parquet"
        (locate(prefix, StorageSection()) / name).write(content)
        entries.append(ShardEntry(name, len(known), len(content), hashlib.sha256(content).hexdigest()))
    write_manifest(locate(prefix, StorageSection()), entries)
    return prefix


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One tracking store for the module: making one takes longer than an evaluation."""
    return load_config(None, [f"work={tmp_path_factory.mktemp('work')}", "evaluate.resamples=50"])


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def test_over_http_it_finds_what_scikit_learn_finds(
    s3: Callable[[str], str], mlflow_url: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    bucket, rows = s3("evaluate-http"), archive()
    write_predictions(f"{bucket}/out", [rows[:50], rows[50:]], quarantined=4)
    labelled = rows[:80]
    absent = [row | {"image_id": f"absent-{number}"} for number, row in enumerate(rows[:7])]
    shards = write_shards(f"{bucket}/shards", labelled + absent)
    found = evaluate.run(config, f"{bucket}/out", shards)

    truth = np.array([CLASSES.index(row["truth"]) for row in labelled])
    probabilities = np.array([row["probabilities"] for row in labelled])
    called = probabilities.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, called))
    assert found["macro_auroc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-6)
    for index, name in enumerate(CLASSES):
        expected = recall_score(truth == index, called == index)
        assert found["metrics"][f"sensitivity/{name}"]["value"] == pytest.approx(expected)
    counts = {name: found[name] for name in ("rows", "unlabelled", "unpredicted", "quarantined")}
    assert counts == {"rows": 80, "unlabelled": 10, "unpredicted": 7, "quarantined": 4}
    for site in ("north", "south"):
        here = np.array([row["site"] == site for row in labelled])
        assert found["sites"][site]["accuracy"]["value"] == pytest.approx(accuracy_score(truth[here], called[here]))
    assert set(found["sites"]) == {"north", "south"}

    run = mlflow.get_run(found["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    logged = run.data.metrics
    assert logged["accuracy"] == found["accuracy"] and logged["unlabelled"] == 10 and logged["unpredicted"] == 7
    assert logged["sensitivity/ring lesion_high"] == found["metrics"]["sensitivity/ring lesion"]["high"]
    assert logged["site/north/accuracy_low"] == found["sites"]["north"]["accuracy"]["low"]
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"predictions", "labels"}


def test_the_pictures_and_the_result_are_kept(config: Config, out: str, tmp_path: Path) -> None:
    rows = archive()
    write_predictions(out, [rows])
    found = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    kept = Path(mlflow.artifacts.download_artifacts(run_id=found["mlflow_run_id"], dst_path=str(tmp_path)))
    result = json.loads((kept / "metrics.json").read_text())
    assert result == {name: value for name, value in found.items() if name != "mlflow_run_id"}
    for name in ("confusion_matrix.png", "reliability_diagram.png"):
        picture = np.asarray(Image.open(io.BytesIO((kept / name).read_bytes())).convert("L"))
        assert min(picture.shape) > 300 and picture.std() > 10


@pytest.mark.parametrize("column", ["image_id", "file"])
def test_a_file_and_shards_of_the_same_labels_agree(config: Config, out: str, tmp_path: Path, column: str) -> None:
    rows = archive()
    write_predictions(out, [rows[:30], rows[30:]])
    of_file = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows, column))
    of_shards = evaluate.run(config, out, write_shards(str(tmp_path / "shards"), rows))
    assert of_file["metrics"] == of_shards["metrics"] and of_file["sites"] == of_shards["sites"]


def test_images_of_a_patient_are_one_draw(config: Config, out: str, tmp_path: Path) -> None:
    """Ten identical images of each patient: without the patients the interval is about sqrt(10) too narrow."""
    rows = [row | {"image_id": f"{row['image_id']}-{copy}"} for row in archive(60) for copy in range(10)]
    alone = [row | {"patient_id": None} for row in rows]
    whole = [row | {"patient_id": row["image_id"].split("-")[1]} for row in rows]
    labels = write_csv(tmp_path / "labels.csv", rows)
    widths = []
    for name, made in (("alone", alone), ("whole", whole)):
        write_predictions(f"{out}-{name}", [made])
        entry = evaluate.run(config, f"{out}-{name}", labels)["metrics"]["accuracy"]
        widths.append(entry["high"] - entry["low"])
    assert 2.0 < widths[1] / widths[0] < 5.0


@pytest.mark.parametrize(
    ("known", "drawn", "told"),
    [
        (lambda row: True, "by patient", None),
        (lambda row: False, "by image", "no patient_id: images of one patient may be on both sides"),
        (
            lambda row: row % 3 != 1,
            "by patient where known",
            "no patient_id for 30 of 90 images: images of one patient",
        ),
    ],
)
def test_what_intervals_are_drawn_by_is_said_with_every_figure(
    config: Config,
    out: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    known: Callable[[int], bool],
    drawn: str,
    told: str | None,
) -> None:
    """One site has no patient in the last case, the other is known whole."""
    rows = [row if known(index) else row | {"patient_id": None} for index, row in enumerate(archive())]
    write_predictions(out, [rows[:50], rows[50:]])
    with caplog.at_level(logging.INFO):
        found = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert found["intervals"] == drawn
    assert found["rows_without_patient"] == sum(not known(index) for index in range(90))
    by_site = "by image" if not known(1) else "by patient", "by image" if not known(2) else "by patient"
    assert (found["site_intervals"]["north"], found["site_intervals"]["south"]) == by_site
    run = mlflow.get_run(found["mlflow_run_id"])
    assert run.data.tags["medfocus.intervals"] == drawn
    assert run.data.metrics["rows_without_patient"] == found["rows_without_patient"]
    kept = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path)))
    result = json.loads((kept / "metrics.json").read_text())
    assert (result["intervals"], result["site_intervals"]) == (drawn, found["site_intervals"])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.startswith(told) for message in warnings] == [True] if told else not warnings
    assert f"95 % interval {drawn}" in caplog.text
    sites = [record for record in caplog.records if record.getMessage().startswith("site ")]
    assert [record.fields["intervals"] for record in sites] == list(by_site)


def test_a_shard_all_in_quarantine_is_no_obstacle(config: Config, out: str, tmp_path: Path) -> None:
    rows = archive(30)
    write_predictions(out, [[], rows], quarantined=5)
    found = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert found["rows"] == 30 and found["quarantined"] == 5


def test_a_class_may_be_called_anything(config: Config, out: str, tmp_path: Path) -> None:
    """Names that MLflow refuses, that become alike in what it takes, and one that CSV readers take for nothing."""
    names = ("x//y", "..", "é", "ü", "NA")
    rows = [
        row | {"truth": names[index % 5], "label": names[0], "probabilities": [0.6, 0.1, 0.1, 0.1, 0.1]}
        for index, row in enumerate(archive(20))
    ]
    write_predictions(out, [rows], [names])
    found = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert found["rows"] == 20 and found["accuracy"] == pytest.approx(0.2)
    logged = mlflow.get_run(found["mlflow_run_id"]).data.metrics
    assert sum(name.startswith("sensitivity/") and not name.endswith(("_low", "_high")) for name in logged) >= 5
    values = [value for name, value in logged.items() if name.startswith("sensitivity/")]
    assert len(values) == 15


def test_nothing_told_names_an_image_or_a_patient(
    config: Config, out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = archive()
    write_predictions(out, [rows])
    with caplog.at_level(logging.INFO):
        found = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    run = mlflow.get_run(found["mlflow_run_id"])
    told = caplog.text + json.dumps(found) + json.dumps(run.to_dictionary(), default=str)
    assert "macro_auroc" in caplog.text and "image-" not in told and "PATIENT" not in told


def test_scoring_that_has_not_finished_is_said(
    config: Config, out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = archive(30)
    write_predictions(out, [rows], finished=False)
    evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert "scoring has not finished" in caplog.text


def rewrite(output: Output, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the last file of predictions."""
    file = output.rows / output.rows.files()[-1]
    (file).write(records.encode(change(pq.read_table(pa.BufferReader(file.read())))))


def without_classes(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(records.PREDICTION.metadata)


def column(name: str, values: Callable[[pa.Table], list]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        return table.set_column(table.schema.get_field_index(name), field, pa.array(values(table), field.type))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns(["decision"]), "column decision is missing"),
        (without_classes, "its metadata names no classes"),
        (column("model_version", lambda table: ["lesions/2"] * len(table)), "predictions of 2 model versions"),
        (column("probabilities", lambda table: [[0.5, 0.5]] * len(table)), "column probabilities is not 3 numbers"),
        (column("probabilities", lambda table: [[0.1, float("nan"), 0.1]] * len(table)), "column probabilities is not"),
        (column("image_id", lambda table: ["image-0.png"] * len(table)), "predicted more than once"),
    ],
)
def test_one_wrong_file_of_predictions_is_one_clear_line(
    config: Config, out: str, tmp_path: Path, change: Callable[[pa.Table], pa.Table], told: str
) -> None:
    """It is the last file that is wrong: checking the first alone does not find it."""
    rows = archive()
    rewrite(write_predictions(out, [rows[:45], rows[45:]]), change)
    refused(config, out, write_csv(tmp_path / "labels.csv", rows), told)


def test_classes_in_another_order_are_refused_not_mixed_up(config: Config, out: str, tmp_path: Path) -> None:
    rows = archive()
    write_predictions(out, [rows[:45], rows[45:]], [CLASSES, CLASSES[::-1]])
    refused(config, out, write_csv(tmp_path / "labels.csv", rows), "different classes, or in another order")


def test_predictions_that_are_no_parquet_are_named(config: Config, out: str, tmp_path: Path) -> None:
    output = write_predictions(out, [archive()])
    name = output.rows.files()[0]
    (output.rows / name).write(b"nothing")
    refused(config, out, write_csv(tmp_path / "labels.csv", archive()), f"{name}: not a whole Parquet file")


def test_predictions_that_are_not_there_are_told(config: Config, out: str, tmp_path: Path) -> None:
    labels = write_csv(tmp_path / "labels.csv", archive())
    refused(config, str(tmp_path / "absent"), labels, "no predictions; run medfocus score")
    write_predictions(out, [[]], quarantined=3)
    refused(config, out, labels, "every image is in quarantine")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("image_id,label\nimage-0.png,tumour\n", "label 'tumour' is no class of the model ('cyst', 'ring lesion',"),
        ("image_id,label\nimage-0.png,Cyst\n", "label 'Cyst' is no class of the model, though it looks like 'cyst'"),
        (
            "image_id,label\nimage-0.png,\u0441yst\n",  # a Cyrillic letter
            r"label '\u0441yst' is no class of the model, though it looks like 'cyst'",
        ),
        ("image_id,label\nPATIENT-9.png,cyst\n", "names none of the predicted images"),
        ("image_id,label\nimage-0.png,\n", "holds no label"),
        ("name,label\nimage-0.png,cyst\n", "the header must name file (or image_id) and label"),
        ("image_id,label\nimage-0.png,cyst\nPATIENT-9.png,cyst,x\n", "line 3 has 3 values, the header has 2"),
        ("", "column file is missing"),
        (b"image_id,label\nimage-0.png,\xff\xc3\xa9\n", "line 2 is not UTF-8, though others are"),
        (None, "neither shards nor a label file"),
    ],
)
def test_labels_that_do_not_serve_are_one_clear_line(
    config: Config, out: str, tmp_path: Path, content: str | bytes | None, told: str
) -> None:
    write_predictions(out, [archive()])
    labels = tmp_path / "labels.csv"
    if content is not None:
        labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(config, out, str(labels), told)
    assert message.startswith(str(labels)) and "PATIENT" not in message and "image-0" not in message


def test_two_labels_of_an_image_name_it(config: Config, out: str, tmp_path: Path) -> None:
    """Whoever has to choose between two lines needs to know of which image."""
    write_predictions(out, [archive()])
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,label\nimage-0.png,cyst\nimage-0,solid mass\n")
    refused(config, out, str(labels), "lines 2 and 3 give two labels to image-0.png")


def test_classes_that_differ_by_blanks_form_or_zeros_are_one(config: Config, out: str, tmp_path: Path) -> None:
    """On either side: an older model may have a class with a blank at its end."""
    names = ("cafe\u0301 ", "1.0", "x  y")
    rows = [
        row | {"truth": names[index % 3], "label": names[0], "probabilities": [0.6, 0.2, 0.2]}
        for index, row in enumerate(archive(9))
    ]
    write_predictions(out, [rows], [names])
    labels = tmp_path / "labels.csv"
    spelled = ("caf\u00e9", "1", "\u00a0x y")
    lines = [f"{row['image_id'].upper()};{spelled[index % 3]}" for index, row in enumerate(rows)]
    labels.write_bytes("\r".join(["FILE;Label", *lines]).encode("utf-16"))
    found = evaluate.run(config, out, str(labels))
    assert found["rows"] == 9 and found["accuracy"] == pytest.approx(1 / 3)
    assert evaluate.run(config, out, write_shards(str(tmp_path / "shards"), rows))["metrics"] == found["metrics"]


def test_a_large_file_with_reports_of_several_lines_is_read(config: Config, out: str, tmp_path: Path) -> None:
    rows = archive()
    write_predictions(out, [rows])
    report = 'Findings:\n"none", ' * 20
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "report", "label"])
        writer.writerows([f"other-{index}.png", report, "cyst"] for index in range(30_000))
        writer.writerows([row["image_id"], report, row["truth"]] for row in rows)
    found = evaluate.run(config, out, str(tmp_path / "labels.csv"))
    assert (found["rows"], found["unpredicted"]) == (len(rows), 30_000)


def test_shards_without_a_label_column_are_named(config: Config, out: str, tmp_path: Path) -> None:
    write_predictions(out, [archive()])
    shards = tmp_path / "shards"
    write_shards(str(shards), archive())
    victim = shards / "shard-1.parquet"
    pq.write_table(pq.read_table(victim).drop_columns(["label"]), victim)
    refused(config, out, str(shards), "shard-1.parquet: column label is missing")


def refused(config: Config, out: str, labels: str, told: str) -> str:
    """Evaluation ends before it starts, with one line that holds ``told``; returns the line."""
    with pytest.raises(UsageError) as caught:
        evaluate.run(config, out, labels)
    message = str(caught.value)
    assert told in message and "\n" not in message
    return message
