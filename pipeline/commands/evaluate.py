"""``medfocus evaluate``: compares predictions with labels, over all images and for each site."""

import hashlib
import json
import re
import tempfile
from collections.abc import Container
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from medfocus.pipeline.config import Config, EvaluateSection
from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.data.commit import PREDICTIONS, RUN_FILE, Output
from medfocus.pipeline.data.manifest import FILE
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import before_start
from medfocus.pipeline.evaluation import charts
from medfocus.pipeline.evaluation.metrics import EvaluationSet, as_lines, calibration, confusion, measure
from medfocus.pipeline.evaluation.predictions import evaluation_set, read_predictions
from medfocus.pipeline.evaluation.truth import Naming, read_truth
from medfocus.pipeline.identity.key import find_key
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, pseudonym_of
from medfocus.pipeline.ingest import items
from medfocus.pipeline.labels.class_mapping import ClassMapping, read_class_mapping
from medfocus.pipeline.tracking import runs


def run(config: Config, out: str, labels: str, split: str | None = None) -> dict[str, Any]:
    """Compare predictions with labels.

    Args:
        config: ``evaluate`` sets resamples and bins, ``seed`` the resampling.
        out: prefix that ``score`` wrote.
        labels: prefix of shards, or a label file (``labels.reader``), joined as ``pack`` joins it (``labels.join``).
        split: split of the shards to compare; None compares all.

    Returns:
        ``accuracy`` and ``macro_auroc``, 0 to 1. Numbers of images: ``rows``, compared; ``unlabelled``, predicted but
        without a label; ``unpredicted``, labelled but in quarantine or not scored; ``quarantined``;
        ``rows_without_patient``, compared without a known patient. ``intervals``: what resamples draw (``by patient``,
        ``by image``, or ``by patient where known``). ``metrics`` and, by name, ``sites`` as ``measure`` gives them,
        with ``site_intervals``. ``model_version`` and ``mlflow_run_id``.

    Raises:
        UsageError: there are no predictions, they are of several models, or the labels do not fit them.
        TrackingError: the tracking store cannot be used.
    """
    with before_start():
        output = Output(locate(out, config.storage), PREDICTIONS)
        place = locate(labels, config.storage)
        naming = None if (place / FILE).exists() else _naming(config)
        truth = read_truth(place, output.rows, naming, split)
        files, classes, version = read_predictions(output.rows, truth, split)
        sample, sites = evaluation_set(files, classes, truth, output.rows.uri)
        has_patient = np.array([patient is not None for file in files for patient in file.patients])
        finished = _is_finished(output)
        counts = {
            "rows": len(sample.truth),
            "unlabelled": sum(file.row_count for file in files) - len(sample.truth),
            "unpredicted": len(truth.codes) - len(sample.truth) + truth.unpredicted,
            "quarantined": output.quarantined(),
            "rows_without_patient": int((~has_patient).sum()),
        }
    if not finished:
        log.warning("scoring has not finished: the metrics are of the predictions so far")
    if counts["rows_without_patient"]:
        log.warning("%s", _patient_warning(counts["rows_without_patient"], counts["rows"]))
    with runs.run("evaluate", config) as active:
        runs.log_parameters({"model_version": version})
        runs.log_tags({"intervals": _interval_method(has_patient)})
        runs.log_dataset("predictions", _digest(sample, version), "evaluate")
        runs.log_dataset("labels", truth.digest, "evaluate")
        detail = _measure_sites(sample, sites, has_patient, config)
        overall = detail["metrics"]
        result = {name: overall[name]["value"] for name in ("accuracy", "macro_auroc")}
        result |= counts | {"intervals": _interval_method(has_patient), "model_version": version}
        runs.log_metrics(counts | _flatten(overall, detail["sites"]))
        _log_files(sample, overall, result | detail, config.evaluate)
        headline = {name: result[name] for name in ("accuracy", "intervals")}
        event("evaluated, rows without a label left out", **counts, **headline)
        return result | {"mlflow_run_id": active.info.run_id} | detail


def _naming(config: Config) -> Naming:
    """How a label file names images whose names are pseudonyms under the key of this call, or paths."""
    mapping = ClassMapping({})
    if config.labels.mapping is not None:
        mapping = read_class_mapping(locate(config.labels.mapping, config.storage))
    key = None if config.deid.names == "keep" else find_key(config.deid, config.work)
    if key is None:  # a new one would give the pseudonyms of no archive
        return Naming(mapping=mapping)
    pseudonyms = Pseudonyms(key)
    names = items.Naming(pseudonyms, keep=False)
    return Naming(
        lambda kind, text: pseudonym_of(pseudonyms, kind, text), lambda path: [names.item(path)], items.item_of, mapping
    )


def _measure_sites(
    sample: EvaluationSet, sites: np.ndarray, has_patient: np.ndarray, config: Config
) -> dict[str, dict[str, Any]]:
    """The metrics of all images and of each site, which are also logged."""
    overall = _measure(sample, config)
    title = f"all sites, {len(sites)} images, value and 95 % interval {_interval_method(has_patient)}"
    for line in as_lines(title, overall):
        log.info("%s", line)
    names = sorted({site for site in sites if site})
    by_site = {site: _measure(sample.only(sites == site), config) for site in names}
    intervals = {site: _interval_method(has_patient[sites == site]) for site in names}
    for site, metrics in by_site.items():
        event(f"site {site}", images=int((sites == site).sum()), **_headline(metrics), intervals=intervals[site])
    return {"metrics": overall, "sites": by_site, "site_intervals": intervals}


def _measure(sample: EvaluationSet, config: Config) -> dict[str, dict[str, Any]]:
    section = config.evaluate
    return measure(sample, resamples=section.resamples, bins=section.calibration_bins, seed=config.seed)


def _headline(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: metrics[name]["value"] for name in ("accuracy", "macro_auroc", "expected_calibration_error")}


def _interval_method(has_patient: np.ndarray) -> str:
    """What a resample draws, from whether the patient of each image is known, bool [N]."""
    if has_patient.all():
        return "by patient"
    return "by patient where known" if has_patient.any() else "by image"


def _patient_warning(unknown: int, rows: int) -> str:
    """The warning that patients are not known, with the consequences for every figure."""
    extent = "no patient_id" if unknown == rows else f"no patient_id for {unknown} of {rows} images"
    return (
        f"{extent}: images of one patient may be on both sides, in training and here, figures are likely optimistic;"
        " each such image is drawn by itself, intervals are likely too narrow; give patient_id to pack"
    )


def _is_finished(output: Output) -> bool:
    """Whether ``score`` has finished."""
    record = output.prefix / RUN_FILE
    return bool(record.exists() and record.read_json().get("finished"))


def _digest(sample: EvaluationSet, version: str) -> str:
    """SHA-256 of the predictions; it contains no ``image_id``."""
    digest = hashlib.sha256(json.dumps([version, sample.classes]).encode())
    digest.update(sample.probabilities.tobytes())
    return digest.hexdigest()


def _flatten(overall: dict[str, dict[str, Any]], by_site: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Values and ends of intervals by names that MLflow accepts, each of them unique."""
    flat: dict[str, float] = {}
    for prefix, metrics in [((), overall), *((("site", site), by_site[site]) for site in by_site)]:
        for name, entry in metrics.items():
            path = "/".join(_path_segment(part) for part in (*prefix, *name.split("/", 1)))
            for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                if entry[key] is not None:
                    flat[_unique(path + suffix, flat)] = entry[key]
    return flat


def _path_segment(name: str) -> str:
    """A name as one segment of a metric's path: MLflow accepts few characters, and neither ``.`` nor ``..``."""
    allowed = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:80]
    return "_" if not allowed.strip(".") else allowed


def _unique(name: str, taken: Container[str]) -> str:
    """The name, with a number if it is taken: names can differ only in characters that MLflow refuses."""
    return next(free for number in count(1) if (free := name if number == 1 else f"{name} {number}") not in taken)


def _log_files(
    sample: EvaluationSet, overall: dict[str, dict[str, Any]], result: dict[str, Any], section: EvaluateSection
) -> None:
    """Log the charts and the whole result to the active run."""
    error = overall["expected_calibration_error"]["value"]
    reliability = charts.reliability_figure(*calibration(sample, section.calibration_bins), error)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        charts.save(charts.confusion_figure(confusion(sample), sample.classes), folder / "confusion_matrix.png")
        charts.save(reliability, folder / "reliability_diagram.png")
        (folder / "metrics.json").write_text(json.dumps(result, indent=1, sort_keys=True))
        runs.log_files(folder)
