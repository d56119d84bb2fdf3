"""``evaluate`` on predictions written here, so that the correct figures are known."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from medfocus.pipeline.commands import evaluate
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.errors import UsageError
from tests.pipeline.evaluation.archive import CLASSES, draw_rows, write_csv, write_predictions, write_shards


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One tracking store for the module: making one takes longer than an evaluation."""
    return load_config(None, [f"work={tmp_path_factory.mktemp('work')}", "evaluate.resamples=50"])


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def test_the_figures_equal_those_of_scikit_learn_over_http(
    s3: Callable[[str], str], mlflow_url: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    bucket, rows = s3("evaluate-http"), draw_rows()
    write_predictions(f"{bucket}/out", [rows[:50], rows[50:]], quarantined=4)
    labelled = rows[:80]
    absent = [row | {"image_id": f"absent-{number}"} for number, row in enumerate(rows[:7])]
    shards = write_shards(f"{bucket}/shards", labelled + absent)
    result = evaluate.run(config, f"{bucket}/out", shards)

    truth = np.array([CLASSES.index(row["truth"]) for row in labelled])
    probabilities = np.array([row["probabilities"] for row in labelled])
    called = probabilities.argmax(1)
    assert result["accuracy"] == pytest.approx(accuracy_score(truth, called))
    assert result["macro_auroc"] == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"), abs=1e-6)
    for index, name in enumerate(CLASSES):
        expected = recall_score(truth == index, called == index)
        assert result["metrics"][f"sensitivity/{name}"]["value"] == pytest.approx(expected)
    counts = {name: result[name] for name in ("rows", "unlabelled", "unpredicted", "quarantined")}
    assert counts == {"rows": 80, "unlabelled": 10, "unpredicted": 7, "quarantined": 4}
    for site in ("north", "south"):
        here = np.array([row["site"] == site for row in labelled])
        assert result["sites"][site]["accuracy"]["value"] == pytest.approx(accuracy_score(truth[here], called[here]))
    assert set(result["sites"]) == {"north", "south"}

    run = mlflow.get_run(result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    logged = run.data.metrics
    assert logged["accuracy"] == result["accuracy"] and logged["unlabelled"] == 10 and logged["unpredicted"] == 7
    assert logged["sensitivity/ring lesion_high"] == result["metrics"]["sensitivity/ring lesion"]["high"]
    assert logged["site/north/accuracy_low"] == result["sites"]["north"]["accuracy"]["low"]
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"predictions", "labels"}


def test_the_charts_and_the_result_are_logged(config: Config, out: str, tmp_path: Path) -> None:
    rows = draw_rows()
    write_predictions(out, [rows])
    result = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    files = Path(mlflow.artifacts.download_artifacts(run_id=result["mlflow_run_id"], dst_path=str(tmp_path)))
    logged = json.loads((files / "metrics.json").read_text())
    assert logged == {name: value for name, value in result.items() if name != "mlflow_run_id"}
    for name in ("confusion_matrix.png", "reliability_diagram.png"):
        chart = np.asarray(Image.open(io.BytesIO((files / name).read_bytes())).convert("L"))
        assert min(chart.shape) > 300 and chart.std() > 10


def test_the_images_of_a_patient_are_drawn_together(config: Config, out: str, tmp_path: Path) -> None:
    """Ten identical images of each patient: without the patients the interval is about sqrt(10) too narrow."""
    rows = [row | {"image_id": f"{row['image_id']}-{copy}"} for row in draw_rows(60) for copy in range(10)]
    without = [row | {"patient_id": None} for row in rows]
    with_patient = [row | {"patient_id": row["image_id"].split("-")[1]} for row in rows]
    labels = write_csv(tmp_path / "labels.csv", rows)
    widths = []
    for name, predictions in (("without", without), ("with", with_patient)):
        write_predictions(f"{out}-{name}", [predictions])
        entry = evaluate.run(config, f"{out}-{name}", labels)["metrics"]["accuracy"]
        widths.append(entry["high"] - entry["low"])
    assert 2.0 < widths[1] / widths[0] < 5.0


@pytest.mark.parametrize(
    ("has_patient", "method", "warning"),
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
def test_every_figure_is_reported_with_what_its_interval_draws(
    config: Config,
    out: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    has_patient: Callable[[int], bool],
    method: str,
    warning: str | None,
) -> None:
    """In the last case one site has no patients, and the other has all of them."""
    rows = [row if has_patient(index) else row | {"patient_id": None} for index, row in enumerate(draw_rows())]
    write_predictions(out, [rows[:50], rows[50:]])
    with caplog.at_level(logging.INFO):
        result = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert result["intervals"] == method
    assert result["rows_without_patient"] == sum(not has_patient(index) for index in range(90))
    by_site = ["by patient" if has_patient(index) else "by image" for index in (1, 2)]
    assert [result["site_intervals"][site] for site in ("north", "south")] == by_site
    run = mlflow.get_run(result["mlflow_run_id"])
    assert run.data.tags["medfocus.intervals"] == method
    assert run.data.metrics["rows_without_patient"] == result["rows_without_patient"]
    files = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=str(tmp_path)))
    logged = json.loads((files / "metrics.json").read_text())
    assert (logged["intervals"], logged["site_intervals"]) == (method, result["site_intervals"])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if warning is None:
        assert warnings == []
    else:
        assert len(warnings) == 1 and warnings[0].startswith(warning)
    assert f"95 % interval {method}" in caplog.text
    sites = [record for record in caplog.records if record.getMessage().startswith("site ")]
    assert [record.fields["intervals"] for record in sites] == by_site


def test_a_shard_may_be_in_quarantine_as_a_whole(config: Config, out: str, tmp_path: Path) -> None:
    rows = draw_rows(30)
    write_predictions(out, [[], rows], quarantined=5)
    result = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert result["rows"] == 30 and result["quarantined"] == 5


def test_a_class_may_have_any_name(config: Config, out: str, tmp_path: Path) -> None:
    """Names that MLflow refuses, names that differ only in characters it refuses, and one that CSV readers drop."""
    names = ("x//y", "..", "é", "ü", "NA")
    rows = [
        row | {"truth": names[index % 5], "label": names[0], "probabilities": [0.6, 0.1, 0.1, 0.1, 0.1]}
        for index, row in enumerate(draw_rows(20))
    ]
    write_predictions(out, [rows], [names])
    result = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert result["rows"] == 20 and result["accuracy"] == pytest.approx(0.2)
    logged = mlflow.get_run(result["mlflow_run_id"]).data.metrics
    assert sum(name.startswith("sensitivity/") and not name.endswith(("_low", "_high")) for name in logged) >= 5
    values = [value for name, value in logged.items() if name.startswith("sensitivity/")]
    assert len(values) == 15


def test_no_output_names_an_image_or_a_patient(
    config: Config, out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = draw_rows()
    write_predictions(out, [rows])
    with caplog.at_level(logging.INFO):
        result = evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    run = mlflow.get_run(result["mlflow_run_id"])
    outputs = caplog.text + json.dumps(result) + json.dumps(run.to_dictionary(), default=str)
    assert "macro_auroc" in caplog.text and "image-" not in outputs and "PATIENT" not in outputs


def test_a_warning_says_that_scoring_has_not_finished(
    config: Config, out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = draw_rows(30)
    write_predictions(out, [rows], finished=False)
    evaluate.run(config, out, write_csv(tmp_path / "labels.csv", rows))
    assert "scoring has not finished" in caplog.text


def test_a_wrong_call_starts_no_run(config: Config, out: str, tmp_path: Path) -> None:
    """A file that storage cannot read is a wrong call too: nothing was started."""
    rows = draw_rows(30)
    labels = write_csv(tmp_path / "labels.csv", rows)
    before = len(mlflow.search_runs(search_all_experiments=True))
    with pytest.raises(UsageError, match="no predictions; run medfocus score"):
        evaluate.run(config, out, labels)
    with pytest.raises(UsageError, match="not a local path or s3"):
        evaluate.run(config, "ftp://host/out", labels)
    assert len(mlflow.search_runs(search_all_experiments=True)) == before
