"""``medfocus evaluate``: metrics of predictions against labels, overall and for each site."""

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
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import before_start
from medfocus.pipeline.evaluation import charts
from medfocus.pipeline.evaluation.metrics import EvaluationSet, as_lines, calibration, confusion, measure
from medfocus.pipeline.evaluation.predictions import evaluation_set, read_predictions
from medfocus.pipeline.evaluation.truth import read_truth
from medfocus.pipeline.tracking import runs


def run(config: Config, out: str, labels: str) -> dict[str, Any]:
    """Compare predictions with labels.

    Args:
        config: ``evaluate`` sets resamples and bins.
        out: prefix that ``score`` wrote.
        labels: prefix of shards, or a label file (``labels``), joined as ``pack`` joins it (``label_join``).

    Returns:
        ``rows`` compared; ``unlabelled`` predictions, left out; ``unpredicted`` labels, of images in quarantine or
        not scored; ``quarantined`` images; ``rows_without_patient``, compared images whose patient is not known, and
        ``intervals``, what resamples draw (``by patient``, ``by image``, or ``by patient where known``); ``metrics``
        and, by name, ``sites`` as ``measure`` gives them, with ``site_intervals``.

    Raises:
        UsageError: there are no predictions, they are of several models, or the labels do not fit them.
    """
    with before_start():
        output = Output(locate(out, config.storage), PREDICTIONS)
        truth = read_truth(locate(labels, config.storage), output.rows)
        parts, classes, version = read_predictions(output.rows, truth)
        judged, sites = evaluation_set(parts, classes, truth, output.rows.uri)
        known = np.array([patient is not None for part in parts for patient in part.patients])
        finished = _is_finished(output)
        counts = {
            "rows": len(judged.truth),
            "unlabelled": sum(part.rows for part in parts) - len(judged.truth),
            "unpredicted": len(truth.codes) - len(judged.truth) + truth.unpredicted,
            "quarantined": output.quarantined(),
            "rows_without_patient": int((~known).sum()),
        }
    if not finished:
        log.warning("scoring has not finished: the metrics are of the predictions so far")
    if counts["rows_without_patient"]:
        log.warning("%s", _without_patient(counts["rows_without_patient"], counts["rows"]))
    with runs.run("evaluate", config) as active:
        runs.log_parameters({"model_version": version})
        runs.log_tags({"intervals": _drawn(known)})
        runs.log_dataset("predictions", _digest(judged, version), "evaluate")
        runs.log_dataset("labels", truth.digest, "evaluate")
        overall = _measure(judged, config)
        by_site = {site: _measure(judged.only(sites == site), config) for site in sorted(set(sites)) if site}
        title = f"all sites, {counts['rows']} images, value and 95 % interval {_drawn(known)}"
        for line in as_lines(title, overall):
            log.info("%s", line)
        intervals = {site: _drawn(known[sites == site]) for site in by_site}
        for site, metrics in by_site.items():
            event(f"site {site}", images=int((sites == site).sum()), **_heads(metrics), intervals=intervals[site])
        result = {"accuracy": overall["accuracy"]["value"], "macro_auroc": overall["macro_auroc"]["value"]}
        result |= counts | {"intervals": _drawn(known), "model_version": version}
        detail = {"metrics": overall, "sites": by_site, "site_intervals": intervals}
        runs.log_metrics(counts | _flat(overall, by_site))
        _log_files(judged, overall, result | detail, config.evaluate)
        heads = {name: result[name] for name in ("accuracy", "intervals")}
        event("evaluated, rows without a label left out", **counts, **heads)
        return result | {"mlflow_run_id": active.info.run_id} | detail


def _measure(judged: EvaluationSet, config: Config) -> dict[str, dict[str, Any]]:
    section = config.evaluate
    return measure(judged, resamples=section.resamples, bins=section.calibration_bins, seed=config.seed)


def _heads(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: metrics[name]["value"] for name in ("accuracy", "macro_auroc", "expected_calibration_error")}


def _drawn(known: np.ndarray) -> str:
    """What a resample draws of images whose patient is known or not, bool [N]."""
    if known.all():
        return "by patient"
    return "by patient where known" if known.any() else "by image"


def _without_patient(unknown: int, rows: int) -> str:
    """What is not known of the images that are compared, and what follows for every figure of them."""
    which = "no patient_id" if unknown == rows else f"no patient_id for {unknown} of {rows} images"
    return (
        f"{which}: images of one patient may be on both sides, in training and here, figures are likely optimistic;"
        " each such image is drawn by itself, intervals are likely too narrow; give patient_id to pack"
    )


def _is_finished(output: Output) -> bool:
    record = output.prefix / RUN_FILE
    return bool(record.exists() and record.read_json().get("finished"))


def _digest(judged: EvaluationSet, version: str) -> str:
    """SHA-256 of what was compared, by what was predicted of it: ids stay out."""
    digest = hashlib.sha256(json.dumps([version, judged.classes]).encode())
    digest.update(judged.probabilities.tobytes())
    return digest.hexdigest()


def _flat(overall: dict[str, dict[str, Any]], by_site: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Values and ends of intervals under names that MLflow takes, no two alike."""
    flat: dict[str, float] = {}
    for prefix, metrics in [((), overall), *((("site", site), by_site[site]) for site in by_site)]:
        for name, entry in metrics.items():
            path = "/".join(_segment(part) for part in (*prefix, *name.split("/", 1)))
            for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                if entry[key] is not None:
                    flat[_free(path + suffix, flat)] = entry[key]
    return flat


def _segment(name: str) -> str:
    """A name as one segment of a metric's name: MLflow takes few characters, and no path that has another form."""
    allowed = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:80]
    return "_" if not allowed.strip(".") else allowed


def _free(name: str, taken: Container[str]) -> str:
    """The name, numbered if it is taken: what differs in letters that MLflow refuses must not be overwritten."""
    return next(free for number in count(1) if (free := name if number == 1 else f"{name} {number}") not in taken)


def _log_files(
    judged: EvaluationSet, overall: dict[str, dict[str, Any]], result: dict[str, Any], section: EvaluateSection
) -> None:
    """Pictures and the whole result into the active run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        charts.draw_confusion(folder / "confusion_matrix.png", confusion(judged), judged.classes)
        error = overall["expected_calibration_error"]["value"]
        charts.draw_reliability(
            folder / "reliability_diagram.png", *calibration(judged, section.calibration_bins), error
        )
        (folder / "metrics.json").write_text(json.dumps(result, indent=1, sort_keys=True))
        runs.log_files(folder)
