"""``medfocus demo``: the whole pipeline on phantoms, on this machine, through the commands a cluster would run."""

import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

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

# Numbers of phantoms of one set: the first have labels to train on, the others are the archive.
LABELLED, ARCHIVE = 240, 160
# Settings for a laptop; everything else is at its default.
_SETTINGS: dict[str, dict[str, Any]] = {
    "pack": {"rows_per_shard": 40},
    "deid": {"names": "keep"},  # phantoms are nobody's
    "burned_in": {"action": "keep"},
    "segment": {"points_per_side": 8, "regions": 8},
    "train": {"epochs": 10, "folds": 2},
}
_PICTURE = "results.png"
# Phantoms in the picture.
_PICTURED = 8


class StageTime(NamedTuple):
    """How many images a stage had, and the seconds it took."""

    stage: str
    images: int
    seconds: float


def run(config: Config, work: str | None = None) -> dict[str, Any]:
    """Draw phantoms, then pack, embed, train, score and evaluate; prints a table of the stages and the metrics.

    Args:
        config: the configuration; where it has a default, the demo may have a smaller setting.
        work: folder for all that the demo makes; None takes that of the configuration. ``demo/`` below it is emptied
            first.

    Returns:
        ``stages``, each with its ``images`` and ``seconds``; ``model_uri``, ``accuracy``, ``macro_auroc``, and how many
        images were ``scored`` and ``quarantined``.

    Raises:
        MedFocusError: the phantoms cannot be drawn, or a command fails.
    """
    if work is not None:
        config = config.model_copy(update={"work": work})
    config = _with_small_settings(config)
    folder = Path(config.work).absolute() / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    stages: list[StageTime] = []
    _time(stages, "phantoms", partial(_draw_phantoms, folder))
    trained, scored, evaluated = _run_commands(config, folder, stages)
    _draw_results(folder)
    _print_stages(stages)
    _print_results(evaluated, scored, trained["model_uri"], folder, config)
    return {
        "stages": [stage._asdict() for stage in stages],
        "model_uri": trained["model_uri"],
        "accuracy": evaluated["accuracy"],
        "macro_auroc": evaluated["macro_auroc"],
        "scored": scored["scored"],
        "quarantined": scored["quarantined"],
    }


def _with_small_settings(config: Config) -> Config:
    """The configuration with the demo's settings where the call leaves the defaults."""
    sections = {}
    for name, settings in _SETTINGS.items():
        section, default = getattr(config, name), getattr(Config(), name)
        update = {key: value for key, value in settings.items() if getattr(section, key) == getattr(default, key)}
        sections[name] = section.model_copy(update=update)
    return config.model_copy(update=sections)


def _time(stages: list[StageTime], stage: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call a stage, and add its images and seconds to the list."""
    started = time.monotonic()
    result = call()
    images = int(result.get("rows", result.get("training_rows", 0)))
    stages.append(StageTime(stage, images, time.monotonic() - started))
    return result


def _draw_phantoms(folder: Path) -> dict[str, Any]:
    """Draw two sets of phantoms that share no patient, by the starter's own command."""
    for name, start, count in (("labelled", 0, LABELLED), ("archive", LABELLED, ARCHIVE)):
        command = [sys.executable, "-m", "medfocus.starter.phantoms", str(folder / name)]
        command += ["--start", str(start), "--count", str(count)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise MedFocusError(f"starter.phantoms failed: {reason}; check that {folder} can be written")
    event("phantoms drawn", images=LABELLED + ARCHIVE)
    return {"rows": LABELLED + ARCHIVE}


def _run_commands(
    config: Config, folder: Path, stages: list[StageTime]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Run the commands on the phantoms; returns the results of ``train``, ``score`` and ``evaluate``."""
    labelled, archive = folder / "labelled", folder / "archive"
    labelled_shards, archive_shards = str(folder / "labelled-shards"), str(folder / "archive-shards")
    features, out = str(folder / "features"), str(folder / "out")
    with connected(config.cluster.address, config.cluster.cpus):
        for images, shards in ((labelled, labelled_shards), (archive, archive_shards)):
            labels = str(images / "labels.csv")
            _time(stages, "pack", partial(pack.run, config, str(images / "images"), shards, labels))
        _time(stages, "embed", partial(embed.run, config, labelled_shards, features))
        trained = _time(stages, "train", partial(train.run, config, features, "medfocus-demo"))
        scored = _time(stages, "score", partial(score.run, config, archive_shards, out, trained["model_uri"]))
    evaluated = _time(stages, "evaluate", partial(evaluate.run, config, out, archive_shards))
    return trained, scored, evaluated


def _draw_results(folder: Path) -> None:
    """Draw scored phantoms, each with the region the model was shown, the predicted class and the true one."""
    table = pads.dataset(folder / "out" / PREDICTIONS).to_table(columns=["image_id", "label", "confidence", "mask"])
    rows = table.sort_by("image_id").slice(0, _PICTURED).to_pylist()
    with (folder / "archive" / "labels.csv").open(newline="") as file:
        truth = {row["file"]: row["label"] for row in csv.DictReader(file)}
    images = [np.asarray(Image.open(folder / "archive" / "images" / row["image_id"])) for row in rows]
    masks = [decode_mask(row["mask"]["counts"], *row["mask"]["size"]) for row in rows]
    titles = [f"{row['label']} ({row['confidence']:.2f})\ntruth: {truth[row['image_id']]}" for row in rows]
    charts.draw_results(folder / _PICTURE, images, masks, titles)


def _print_stages(stages: list[StageTime]) -> None:
    """Print the table of the stages."""
    show(f"\n{'stage':<10} {'images':>7} {'seconds':>8} {'images/s':>9}")
    for stage, images, seconds in stages:
        show(f"{stage:<10} {images:>7} {seconds:>8.1f} {images / seconds:>9.1f}")


def _print_results(evaluated: dict[str, Any], scored: dict[str, Any], model: str, folder: Path, config: Config) -> None:
    """Print the metrics, and where a person finds more."""
    title = f"{scored['scored']} images scored by {model}, value and 95 % interval {evaluated['intervals']}:"
    lines = [
        "",
        *as_lines(title, evaluated["metrics"]),
        "",
        "Phantoms are drawings; nothing here is for clinical use.",
        f"See the masks: {folder / _PICTURE}",
        f"See the runs: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {quote(shown_uri(config))}",
    ]
    show("\n".join(lines))
