"""``medfocus demo``: the whole pipeline on phantoms, on this machine, through the commands a cluster would run."""

import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pyarrow.dataset as pads
from PIL import Image

from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import embed, evaluate, pack, score, train
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event, show
from medfocus.pipeline.data.commit import PREDICTIONS
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.evaluation import charts
from medfocus.pipeline.evaluation.metrics import as_lines
from medfocus.pipeline.tracking.store import shown_uri
from medfocus.stages.masks import decode_mask

# Phantoms of one set: the first are the labelled few, the others the archive.
_LABELLED, _ARCHIVE = 240, 160
# A laptop's worth of work; everything else is at its default.
_SETTINGS = {
    "pack": {"rows_per_shard": 40},
    "segment": {"points_per_side": 8, "regions": 8},
    "train": {"epochs": 10, "folds": 2},
}


def run(config: Config, work: str | None = None) -> dict[str, Any]:
    """Make phantoms, then pack, embed, train, score and evaluate; prints a table of the stages and the metrics.

    Args:
        config: defaults of the demo give way to what the call sets.
        work: folder for all that the demo makes; ``demo/`` below it is emptied first.
    """
    if work is not None:
        config = config.model_copy(update={"work": work})
    config = _small(config)
    folder = Path(config.work).absolute() / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[tuple[str, int, float]] = []

    def timed(stage: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        started = time.monotonic()
        result = call()
        rows.append((stage, int(result.get("rows", result.get("training_rows", 0))), time.monotonic() - started))
        return result

    timed("phantoms", lambda: _draw(folder))
    labelled, archive = str(folder / "labelled"), str(folder / "archive")
    shards = {name: str(folder / f"{name}-shards") for name in ("labelled", "archive")}
    with connected(config.cluster.address, config.cluster.cpus):
        timed("pack", lambda: pack.run(config, f"{labelled}/images", shards["labelled"], f"{labelled}/labels.csv"))
        timed("pack", lambda: pack.run(config, f"{archive}/images", shards["archive"], f"{archive}/labels.csv"))
        timed("embed", lambda: embed.run(config, shards["labelled"], str(folder / "features")))
        trained = timed("train", lambda: train.run(config, str(folder / "features"), "medfocus-demo"))
        model = trained["model_uri"]
        scored = timed("score", lambda: score.run(config, shards["archive"], str(folder / "out"), model))
    judged = timed("evaluate", lambda: evaluate.run(config, str(folder / "out"), shards["archive"]))
    picture = _draw_results(folder)
    _print(rows, judged, scored, model, picture, config)
    return {
        "stages": [{"stage": stage, "images": images, "seconds": seconds} for stage, images, seconds in rows],
        "model_uri": model,
        "accuracy": judged["accuracy"],
        "macro_auroc": judged["macro_auroc"],
        "scored": scored["scored"],
        "quarantined": scored["quarantined"],
    }


def _small(config: Config) -> Config:
    """The configuration with the demo's sizes where the call leaves the defaults."""
    sections = {}
    for name, keys in _SETTINGS.items():
        section, default = getattr(config, name), getattr(Config(), name)
        left = {key: value for key, value in keys.items() if getattr(section, key) == getattr(default, key)}
        sections[name] = section.model_copy(update=left)
    return config.model_copy(update=sections)


def _draw(folder: Path) -> dict[str, Any]:
    """Two sets of phantoms that share no patient, by the starter's own command."""
    for name, start, count in (("labelled", 0, _LABELLED), ("archive", _LABELLED, _ARCHIVE)):
        command = [sys.executable, "-m", "medfocus.starter.phantoms", str(folder / name)]
        made = subprocess.run(
            [*command, "--start", str(start), "--count", str(count)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            reason = (made.stderr.strip().splitlines() or ["no message"])[-1]
            raise MedFocusError(f"starter.phantoms failed: {reason}; check that {folder} can be written")
    event("phantoms drawn", images=_LABELLED + _ARCHIVE)
    return {"rows": _LABELLED + _ARCHIVE}


def _draw_results(folder: Path) -> Path:
    """A picture of eight scored phantoms, the region the model was shown, and what it made of it."""
    table = pads.dataset(folder / "out" / PREDICTIONS).to_table(columns=["image_id", "label", "confidence", "mask"])
    rows = table.sort_by("image_id").slice(0, 8).to_pylist()
    with (folder / "archive" / "labels.csv").open(newline="") as file:
        truth = {row["file"]: row["label"] for row in csv.DictReader(file)}
    images = [np.asarray(Image.open(folder / "archive" / "images" / row["image_id"])) for row in rows]
    masks = [decode_mask(row["mask"]["counts"], *row["mask"]["size"]) for row in rows]
    titles = [f"{row['label']} ({row['confidence']:.2f})\ntruth: {truth[row['image_id']]}" for row in rows]
    path = folder / "results.png"
    charts.draw_results(path, images, masks, titles)
    return path


def _print(
    rows: list[tuple[str, int, float]],
    judged: dict[str, Any],
    scored: dict[str, Any],
    model: str,
    picture: Path,
    config: Config,
) -> None:
    lines = ["", f"{'stage':<10} {'images':>7} {'seconds':>8} {'images/s':>9}"]
    lines += [f"{stage:<10} {images:>7} {seconds:>8.1f} {images / seconds:>9.1f}" for stage, images, seconds in rows]
    title = f"{scored['scored']} images scored by {model}, value and 95 % interval {judged['intervals']}:"
    lines += ["", *as_lines(title, judged["metrics"]), ""]
    lines += [
        "Phantoms are drawings; nothing here is for clinical use.",
        f"See the masks: {picture}",
        f"See the runs: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {quote(shown_uri(config))}",
    ]
    show("\n".join(lines))
