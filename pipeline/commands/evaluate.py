"""``medfocus evaluate``: metrics of predictions against labels, overall and for each site."""

import difflib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from medfocus.pipeline.config import Config, EvaluateSection
from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import PREDICTIONS, RUN_FILE, Output
from medfocus.pipeline.data.manifest import FILE, read_manifest
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import UsageError, before_start
from medfocus.pipeline.evaluation import charts
from medfocus.pipeline.evaluation.metrics import Judged, as_lines, calibration, confusion, measure
from medfocus.pipeline.labels.join import join_labels
from medfocus.pipeline.labels.reader import likeness, normal_form, read_labels, tell
from medfocus.pipeline.tracking import runs

_COLUMNS = ["image_id", "patient_id", "site", "probabilities", "decision", "model_version"]
# Files read at once: an object store answers slowly, not little.
_READERS = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Labels:
    """What is known: the row of each image, and for each row its label as an index into ``names``.

    Args:
        rows: row by image_id.
        codes: int64 [rows].
        names: the labels there are.
        digest: SHA-256 that stands for where they were read.
        uri: where they were read.
        unpredicted: labels of a label file that name no predicted image; they have no row.
    """

    rows: dict[str, int]
    codes: np.ndarray
    names: list[str]
    digest: str
    uri: str
    unpredicted: int = 0


@dataclass(frozen=True)
class Part:
    """What is needed of one file of predictions: the rows with a label, and what its rows have in common.

    Args:
        known: int64 [n], the row of each in the labels.
        probabilities: float32 [n, C].
        accepted: bool [n].
        patients: the patient of each; None where none is known.
        sites: the site of each; '' where none is known.
        classes: in the order of ``probabilities``.
        versions: of the model, of all rows.
        rows: how many rows the file has.
    """

    known: np.ndarray
    probabilities: np.ndarray
    accepted: np.ndarray
    patients: list[str | None]
    sites: list[str]
    classes: tuple[str, ...]
    versions: frozenset[str]
    rows: int


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
        truth = _read_labels(locate(labels, config.storage), output.rows)
        parts, classes, version = _read_predictions(output.rows, truth)
        judged, sites = _judge(parts, classes, truth, output.rows.uri)
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


def _measure(judged: Judged, config: Config) -> dict[str, dict[str, Any]]:
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


def _digest(judged: Judged, version: str) -> str:
    """SHA-256 of what was compared, by what was predicted of it: ids stay out."""
    digest = hashlib.sha256(json.dumps([version, judged.classes]).encode())
    digest.update(judged.probabilities.tobytes())
    return digest.hexdigest()


def _read(location: Location, record: pa.Schema, columns: list[str]) -> pa.Table:
    """Columns of a Parquet file, which has to hold a record; the file's metadata comes with them."""
    fragment = pads.ParquetFileFormat().make_fragment(location.path, location.filesystem)
    try:
        schema = location.attempt(lambda: fragment.physical_schema)
        records.check_record(schema, record, location.uri)
        table = location.attempt(lambda: fragment.to_table(columns=columns))
    except pa.ArrowInvalid as error:
        raise UsageError(f"{location.uri}: not a whole Parquet file; remove it and make it again") from error
    return table.replace_schema_metadata(schema.metadata)


def _each(locations: Sequence[Location], read: Callable[[Location], T]) -> list[T]:
    """What ``read`` gives for each, in order; several are read at once."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, locations))


def _read_predictions(rows: Location, truth: Labels) -> tuple[list[Part], tuple[str, ...], str]:
    """The predictions with a label, file by file and without their masks; the classes; the model version.

    Raises:
        UsageError: there is no prediction, or the files do not agree on the classes or the model.
    """
    names = rows.files(".parquet")
    if not names:
        raise UsageError(f"{rows.uri}: no predictions; run medfocus score into it, or correct OUT")
    parts = _each([rows / name for name in names], lambda file: _part(file, truth))
    if any(part.classes != parts[0].classes for part in parts):
        raise UsageError(f"{rows.uri}: the files name different classes, or in another order; score into a new prefix")
    versions = frozenset[str]().union(*(part.versions for part in parts))
    if not versions:
        raise UsageError(f"{rows.uri}: every image is in quarantine; see the causes there")
    if len(versions) > 1:
        raise UsageError(f"{rows.uri}: predictions of {len(versions)} model versions; score into a new prefix")
    return parts, parts[0].classes, next(iter(versions))


def _part(file: Location, truth: Labels) -> Part:
    table = _read(file, records.PREDICTION, _COLUMNS)
    if records.CLASSES_KEY not in table.schema.metadata:
        raise UsageError(f"{file.uri}: its metadata names no classes; score into a new prefix")
    classes = tuple(json.loads(table.schema.metadata[records.CLASSES_KEY]))
    known = np.array([truth.rows.get(image, -1) for image in table["image_id"].to_pylist()], np.int64)
    versions = frozenset(table["model_version"].unique().to_pylist())
    labelled = table.filter(pa.array(known >= 0))
    probabilities = labelled["probabilities"].combine_chunks()
    lengths = probabilities.value_lengths().to_numpy(zero_copy_only=False)
    values = probabilities.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if not (lengths == len(classes)).all() or not ((values >= 0) & (values <= 1)).all():
        raise UsageError(
            f"{file.uri}: column probabilities is not {len(classes)} numbers from 0 to 1 in every row; score again"
        )
    return Part(
        known=known[known >= 0],
        probabilities=values.reshape(-1, len(classes)),
        accepted=np.array(labelled["decision"].to_pylist(), object) == "accept",
        patients=labelled["patient_id"].to_pylist(),
        sites=[site or "" for site in labelled["site"].to_pylist()],
        classes=classes,
        versions=versions,
        rows=table.num_rows,
    )


def _read_labels(location: Location, predictions: Location) -> Labels:
    """Labels of a prefix of shards or a label file; rows without a label are left out.

    Args:
        location: of the labels.
        predictions: folder with the files of predictions, whose images a label file names.

    Raises:
        UsageError: it is neither, holds no label, or gives an image two.
    """
    if (location / FILE).exists():
        manifest = read_manifest(location)
        table = _shard_labels([location / shard.name for shard in manifest.shards]).drop_null()
        pairs = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
        return _labels(pairs, manifest.digest, location.uri)
    if not location.exists() or location.is_folder():
        raise UsageError(f"{location.uri}: neither shards nor a label file; correct --labels")
    file = read_labels(location)
    if not any(row.label is not None for row in file.rows):
        raise UsageError(
            f"{location.uri}: holds no label (read as {file.format}); give labelled shards or a label file"
        )
    join = join_labels(file, lambda: _predicted(predictions))
    if join.rows:
        file.log()
        join.log()
    labelled = ((image, row.label) for image, row in join.rows.items() if row.label is not None)
    return replace(_labels(labelled, file.digest, file.uri), unpredicted=join.absent + len(join.ambiguous))


def _labels(pairs: Iterable[tuple[str, str]], digest: str, uri: str) -> Labels:
    """Labels by image. Spellings of a class that differ by blanks or Unicode form are one label."""
    known: dict[str, str] = {}
    for image, label in pairs:
        if known.setdefault(image, normal_form(label)) != normal_form(label):
            raise UsageError(f"{uri}: gives one image two labels; keep one of them")
    names = sorted(set(known.values()))
    index = {name: number for number, name in enumerate(names)}
    codes = np.fromiter((index[label] for label in known.values()), np.int64, len(known))
    return Labels({image: row for row, image in enumerate(known)}, codes, names, digest, uri)


def _shard_labels(shards: Sequence[Location]) -> pa.Table:
    return pa.concat_tables(_each(shards, lambda shard: _read(shard, records.SHARD, ["image_id", "label"])))


def _predicted(predictions: Location) -> Iterator[str]:
    """The ``image_id`` of every prediction, file by file."""
    with ThreadPoolExecutor(_READERS) as pool:
        files = [predictions / name for name in predictions.files(".parquet")]
        for table in pool.map(lambda file: _read(file, records.PREDICTION, ["image_id"]), files):
            yield from table["image_id"].to_pylist()


def _judge(parts: Sequence[Part], classes: tuple[str, ...], truth: Labels, uri: str) -> tuple[Judged, np.ndarray]:
    """All predictions with a label, and the site of each (object [N], '' where none is known)."""
    known = np.concatenate([part.known for part in parts])
    if not len(known):
        raise UsageError(f"{truth.uri}: names none of the predicted images; give the labels of this archive")
    if twice := len(known) - len(np.unique(known)):
        raise UsageError(f"{uri}: {twice} images are predicted more than once; score into a new prefix")
    index = {name: number for number, name in enumerate(classes)}
    folded = {normal_form(name): number for number, name in enumerate(classes)}
    of_label = np.array([index.get(name, folded.get(name, -1)) for name in truth.names], np.int64)
    labels = truth.codes[known]
    if len(strangers := np.unique(labels[of_label[labels] < 0])):
        raise UsageError(f"{truth.uri}: {_no_class(truth.names[strangers[0]], classes)}; correct the labels")
    judged = Judged(
        truth=of_label[labels],
        probabilities=np.concatenate([part.probabilities for part in parts]),
        accepted=np.concatenate([part.accepted for part in parts]),
        patients=_numbered([patient for part in parts for patient in part.patients]),
        classes=classes,
    )
    return judged, np.array([site for part in parts for site in part.sites], object)


def _no_class(label: str, classes: Sequence[str]) -> str:
    """That a label is no class; what differs is made visible where a class looks like it."""
    like = [name for name in classes if likeness(name) == likeness(label)]
    near = difflib.get_close_matches(label, classes, n=1, cutoff=0.7)
    for name in like or [name for name in near if not (label + name).isascii()]:
        return "label {} is no class of the model, though it looks like {}".format(*tell(label, name))
    return f"label {label!r} is no class of the model ({', '.join(map(repr, classes))})"


def _numbered(patients: Sequence[str | None]) -> np.ndarray:
    """A number for each patient, int64 [N]; an image whose patient is not known has its own."""
    numbers: dict[str | int, int] = {}
    return np.array(
        [numbers.setdefault(row if patient is None else patient, len(numbers)) for row, patient in enumerate(patients)],
        np.int64,
    )


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
    judged: Judged, overall: dict[str, dict[str, Any]], result: dict[str, Any], section: EvaluateSection
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
