"""``medfocus evaluate``: metrics of predictions against labels, overall and for each site."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline import charts, records, tracking
from pipeline.commit import PREDICTIONS, RUN_FILE, Output
from pipeline.config import Config, EvaluateSection
from pipeline.errors import UsageError, before_start
from pipeline.logs import event, log
from pipeline.manifest import FILE, read_manifest
from pipeline.metrics import Judged, as_lines, calibration, confusion, measure
from pipeline.storage import Location, locate

_COLUMNS = ["image_id", "patient_id", "site", "probabilities", "decision", "model_version"]


def run(config: Config, out: str, labels: str) -> dict[str, Any]:
    """Compare predictions with labels.

    Args:
        config: ``evaluate`` sets resamples and bins.
        out: prefix that ``score`` wrote.
        labels: prefix of shards, or a CSV file with the columns ``image_id`` (or ``file``) and ``label``.

    Raises:
        UsageError: there are no predictions, they are of several models, or the labels do not fit them.
    """
    with before_start():
        output = Output(locate(out, config.storage), PREDICTIONS)
        predictions, classes, version = _read_predictions(output)
        truth = _read_labels(locate(labels, config.storage))
        judged, sites, unlabelled = _match(predictions, truth, classes, labels)
    with tracking.run("evaluate", config) as active:
        tracking.log_parameters({"model_version": version})
        record = (output.prefix / RUN_FILE).read_json()
        tracking.log_dataset("predictions", record["key"], "evaluate")
        overall = _measure(judged, config)
        by_site = {site: _measure(judged.only(sites == site), config) for site in sorted(set(sites)) if site}
        for line in as_lines(f"all sites, {len(judged.truth)} images", overall):
            log.info(line)
        for site, metrics in by_site.items():
            event(f"site {site}", images=int((sites == site).sum()), **_heads(metrics))
        result = {
            "accuracy": overall["accuracy"]["value"],
            "macro_auroc": overall["macro_auroc"]["value"],
            "rows": len(judged.truth),
            "unlabelled": unlabelled,
            "quarantined": output.quarantined(),
            "model_version": version,
        }
        detail = {"metrics": overall, "sites": by_site}
        _log(judged, overall, by_site, result | detail, config.evaluate)
        tracking.log_metrics({key: result[key] for key in ("rows", "unlabelled", "quarantined")})
        event("evaluated", rows=result["rows"], unlabelled=unlabelled, accuracy=result["accuracy"])
        return result | {"mlflow_run_id": active.info.run_id} | detail


def _measure(judged: Judged, config: Config) -> dict[str, dict[str, Any]]:
    section = config.evaluate
    return measure(judged, resamples=section.resamples, bins=section.calibration_bins, seed=config.seed)


def _heads(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: metrics[name]["value"] for name in ("accuracy", "macro_auroc", "expected_calibration_error")}


def _read_predictions(output: Output) -> tuple[pa.Table, tuple[str, ...], str]:
    """All predictions without their masks, the classes, and the one model version that made them."""
    names = output.rows.files(".parquet")
    if not names:
        raise UsageError(f"{output.rows.uri}: no predictions; run medfocus score into it, or correct OUT")
    first = output.rows / names[0]
    schema = pq.read_schema(first.path, filesystem=first.filesystem)
    records.check_record(schema, records.PREDICTION, first.uri)
    paths = [(output.rows / name).path for name in names]
    dataset = pads.dataset(paths, schema=records.PREDICTION, filesystem=first.filesystem, format="parquet")
    table = dataset.to_table(columns=_COLUMNS)
    versions = pc.unique(table["model_version"]).to_pylist()
    if not table.num_rows:
        raise UsageError(f"{output.rows.uri}: every image is in quarantine; see the causes there")
    if len(versions) > 1:
        raise UsageError(f"{output.rows.uri}: predictions of {len(versions)} model versions; score into a new prefix")
    return table, tuple(json.loads(schema.metadata[records.CLASSES_KEY])), versions[0]


def _read_labels(location: Location) -> dict[str, str]:
    """Label by image_id, of a prefix of shards or a CSV file; rows without a label are left out."""
    if (location / FILE).exists():
        paths = [(location / shard.name).path for shard in read_manifest(location).shards]
        dataset = pads.dataset(paths, schema=records.SHARD, filesystem=location.filesystem, format="parquet")
        table = dataset.to_table(columns=["image_id", "label"])
    else:
        if not location.exists() or location.is_folder():
            raise UsageError(f"{location.uri}: neither shards nor a label file; correct --labels")
        text = {name: pa.string() for name in ("image_id", "file", "label")}
        try:
            options = pacsv.ConvertOptions(column_types=text, strings_can_be_null=True)
            table = pacsv.read_csv(pa.BufferReader(location.read()), convert_options=options)
        except pa.ArrowInvalid as error:
            raise UsageError(
                f"{location.uri}: not a CSV file ({str(error).splitlines()[0][:120]}); correct it"
            ) from error
        name = "image_id" if "image_id" in table.column_names else "file"
        if name not in table.column_names or "label" not in table.column_names:
            raise UsageError(f"{location.uri}: needs the columns image_id (or file) and label; correct the header")
        table = table.select([name, "label"]).rename_columns(["image_id", "label"])
    table = table.filter(table["label"].is_valid())
    if not table.num_rows:
        raise UsageError(f"{location.uri}: holds no label; give labelled shards or a label file")
    return dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))


def _match(
    predictions: pa.Table, truth: dict[str, str], classes: tuple[str, ...], labels: str
) -> tuple[Judged, np.ndarray, int]:
    """Predictions with a label, the site of each ('' where none is known), and how many have no label."""
    images = predictions["image_id"].to_pylist()
    rows = np.array([image in truth for image in images], bool)
    if not rows.any():
        raise UsageError(f"{labels}: names none of the predicted images; give the labels of this archive")
    index = {name: number for number, name in enumerate(classes)}
    named = [truth[image] for image in images if image in truth]
    if strangers := sorted(set(named) - set(classes)):
        raise UsageError(
            f"{labels}: label {strangers[0]} is no class of the model ({', '.join(classes)}); correct the labels"
        )
    probabilities = np.array(predictions["probabilities"].to_pylist(), np.float32)
    patients = [
        f"patient {patient}" if patient is not None else f"image {image}"
        for image, patient in zip(images, predictions["patient_id"].to_pylist(), strict=True)
    ]
    judged = Judged(
        truth=np.array([index[name] for name in named], np.int64),
        probabilities=probabilities[rows],
        accepted=np.array(predictions["decision"].to_pylist())[rows] == "accept",
        patients=np.array(patients)[rows],
        classes=classes,
    )
    sites = np.array([site or "" for site in predictions["site"].to_pylist()])[rows]
    return judged, sites, int((~rows).sum())


def _log(
    judged: Judged,
    overall: dict[str, dict[str, Any]],
    by_site: dict[str, dict[str, dict[str, Any]]],
    result: dict[str, Any],
    section: EvaluateSection,
) -> None:
    """Metrics, pictures and the whole result into the active run."""
    for prefix, metrics in [("", overall), *((f"site/{site}/", by_site[site]) for site in by_site)]:
        for name, entry in metrics.items():
            shown = re.sub(r"[^A-Za-z0-9_./ -]", "_", prefix + name)
            for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                if entry[key] is not None:
                    mlflow.log_metric(shown + suffix, entry[key])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        charts.draw_confusion(folder / "confusion_matrix.png", confusion(judged), judged.classes)
        error = overall["expected_calibration_error"]["value"]
        charts.draw_reliability(
            folder / "reliability_diagram.png", *calibration(judged, section.calibration_bins), error
        )
        (folder / "metrics.json").write_text(json.dumps(result, indent=1, sort_keys=True))
        mlflow.log_artifacts(name)
