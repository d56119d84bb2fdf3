"""Images a second of ``score``, of its models alone, and of other programs.

Usage: ``python -m benchmarks.throughput [--models starter|full] [--images N]`` (13 and 15 minutes)

Each program runs in a process of its own over the first of the same shards, with the same weights. Its speed counts
from its first batch to its last one, for ``score`` from its first commits to its last one, so that loading does not
count. The seconds are those of the whole process. Memory is the peak of what the process and its descendants hold apart
from shared pages. Prints a table with one row for each program, then each target with ``met`` or ``MISSED``; the exit
code is 1 where one is missed.

The models alone are measured before and after ``score``, since the speed of the machine drifts. Where it drifts by
more than 15 %, the share that ``score`` reaches is no evidence, and the run counts as missed. ``--models starter``
needs Daft: ``pip install 'medfocus[peers]'``.
"""

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.memory import private_memory
from benchmarks.starter import Cover, covering, iou
from benchmarks.throughput.full_size import write_full_size
from benchmarks.throughput.workload import ROWS_PER_SHARD, Workload, actor_count, prepare
from medfocus.pipeline.data.manifest import read_manifest, write_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.stages.masks import decode_mask
from tests import servers
from tests.faults.injection import ScoreCommand, wait_for_result

# Images that each program gets, relative to those of ``score``; at least the fewest that give a speed.
SHARES = {
    "ceiling": 0.12,  # each time
    "score": 1.0,
    "score-s3": 0.25,
    "dataloader": 0.1,
    "ray": 0.1,
    "daft": 0.1,
    "predictor": 0.04,
    "generator": 0.016,
}
# Programs in their order. Full-size models take seconds an image on CPUs: only the ceiling is compared.
PROGRAMS = {
    "starter": ("ceiling", "score", "ceiling", "score-s3", "dataloader", "ray", "daft", "predictor", "generator"),
    "full": ("ceiling", "score", "ceiling"),
}
IMAGES = {"starter": 2000, "full": 96}
TITLES = {
    "ceiling": "the models alone",
    "score": "score, shards on disk",
    "score-s3": "score, shards on S3 over HTTP",
    "dataloader": "PyTorch DataLoader around the same stages",
    "ray": "Ray Data as documented, the same stages",
    "daft": "Daft with a class UDF, the same stages",
    "predictor": "loop with SAM2ImagePredictor, the same points",
    "generator": "loop with SAM2AutomaticMaskGenerator",
}
# Smallest speed of ``score``, relative to the models alone and to each other program.
MIN_OF_CEILING = {"starter": 0.85, "full": 0.95}
MIN_OF_PROGRAM = {"predictor": 1.5, "generator": 10.0, "dataloader": 1.0, "ray": 1.0, "daft": 1.0}
MIN_IOU, MIN_SAME_LABELS = 0.99, 0.995
# Largest relative difference between the measurements of the models alone.
MAX_DRIFT = 0.15
# Seconds between readings of memory.
PAUSE = 5
# What a program says of an image: its mask, bool [h, w], and its label.
Answers = Mapping[str, tuple[np.ndarray, str]]


@dataclass(frozen=True)
class Measurement:
    """Speed and memory of one program.

    Args:
        images: number of images between its first and its last batch.
        seconds: time between its first and its last batch.
        total_seconds: time of the whole process.
        mebibytes: peak memory of the process and its descendants.
    """

    images: int
    seconds: float
    total_seconds: float
    mebibytes: int

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def __add__(self, other: "Measurement") -> "Measurement":
        return Measurement(
            self.images + other.images,
            self.seconds + other.seconds,
            self.total_seconds + other.total_seconds,
            max(self.mebibytes, other.mebibytes),
        )


def watch(process: subprocess.Popen[str]) -> tuple[dict[str, Any], float, int]:
    """Wait for a process; its JSON result, its seconds, and the peak MiB of it and its descendants."""
    started, peak = time.monotonic(), 0
    while process.poll() is None:
        peak = max(peak, sum(size for _, _, size in private_memory(psutil.Process(process.pid))))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PAUSE)
    return wait_for_result(process), time.monotonic() - started, peak >> 20


def measure_baseline(baseline: str, workload: Workload, count: int) -> Measurement:
    """Run a program of ``benchmarks.throughput.baselines`` over the first ``count`` images."""
    command = [sys.executable, "-m", "benchmarks.throughput.baselines", baseline, str(workload.folder), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    result, seconds, peak = watch(process)
    return Measurement(result["images"], result["seconds"], seconds, peak)


def score_command(name: str, workload: Workload, shards: str) -> ScoreCommand:
    """``medfocus score`` as a user calls it; its output is the local folder ``name``."""
    return ScoreCommand(shards, str(workload.folder / name), str(workload.model), workload.settings)


def min_score_images() -> int:
    """Fewest images that ``score`` needs for a speed: one shard more than it has actors."""
    return ROWS_PER_SHARD * (actor_count() + 1)


def measure_score(name: str, workload: Workload, shards: str) -> Measurement:
    """Run ``score`` over shards, from a path or URI, with the local output folder ``name``."""
    result, seconds, peak = watch(score_command(name, workload, shards).start())
    commits = sorted(path.stat().st_mtime for path in (workload.folder / name / "predictions").iterdir())
    # The first shard of each actor began at the same time. After that the commits show the actors' full speed.
    actors = actor_count()
    return Measurement(result["scored"] - actors * ROWS_PER_SHARD, commits[-1] - commits[actors - 1], seconds, peak)


def score_answers(workload: Workload) -> Answers:
    """Mask and label of each image in the output of ``score``."""
    rows = score_command("score", workload, str(workload.shards)).rows("predictions")
    return {row["image_id"]: (decode_mask(row["mask"]["counts"], *row["mask"]["size"]), row["label"]) for row in rows}


def baseline_answers(baseline: str, workload: Workload) -> Answers:
    """Mask and label of each image in the output of another program."""
    rows = pq.read_table(workload.folder / f"{baseline}.parquet").to_pylist()
    return {
        row["image_id"]: (decode_mask(row["mask_counts"], row["height"], row["width"]), row["label"]) for row in rows
    }


def cover(answers: Answers, workload: Workload) -> Cover:
    """How the masks of a program cover the lesions."""
    truth = {name: Image.open(workload.folder / "phantoms" / "masks" / name) for name in answers}
    sides = {name: image.size for name, image in truth.items()}
    masks = [np.asarray(Image.fromarray(mask).resize(sides[name])) for name, (mask, _) in answers.items()]
    return covering(masks, [np.asarray(image) > 0 for image in truth.values()])


def upload(workload: Workload, count: int) -> str:
    """Copy the first shards, with a manifest, to S3; their URI."""
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="throughput")
    files = workload.files(count)
    for file in files:
        client.upload_file(str(file), "throughput", f"shards/{file.name}")
    names = {file.name for file in files}
    manifest = read_manifest(locate(str(workload.shards), workload.config.storage))
    entries = [entry for entry in manifest.shards if entry.name in names]
    write_manifest(locate("s3://throughput/shards", workload.config.storage), entries)
    return "s3://throughput/shards"


def measure(workload: Workload, models: str, count: int) -> dict[str, list[Measurement]]:
    """Run all programs, one after the other; a program that runs twice has two measurements."""
    measurements: dict[str, list[Measurement]] = {}
    for program in PROGRAMS[models]:
        least = min_score_images() if program == "score-s3" else 2 * ROWS_PER_SHARD
        images = max(least, int(SHARES[program] * count))
        if program == "score":
            measurement = measure_score(program, workload, str(workload.shards))
        elif program == "score-s3":
            with servers.s3() as url:
                os.environ |= servers.s3_user(url)
                measurement = measure_score(program, workload, upload(workload, images))
        else:
            measurement = measure_baseline(program, workload, images)
        print(f"{program}: {measurement.speed:.2f} images/s", file=sys.stderr)
        measurements.setdefault(program, []).append(measurement)
    return measurements


def targets(models: str, speed: Mapping[str, float], drift: float, workload: Workload) -> list[tuple[str, bool]]:
    """The targets, each with whether it is met.

    Args:
        models: ``starter`` or ``full``.
        speed: images a second of each program.
        drift: relative difference between the measurements of the models alone.
        workload: what was scored.
    """
    share = speed["score"] / speed["ceiling"]
    lines = [
        (f"of the models alone {share:.3f}, at least {MIN_OF_CEILING[models]}", share >= MIN_OF_CEILING[models]),
        (f"the models alone before and after score {drift:.3f} apart, at most {MAX_DRIFT}", drift <= MAX_DRIFT),
    ]
    for program, least in MIN_OF_PROGRAM.items():
        if program in speed:
            ratio = speed["score"] / speed[program]
            lines.append((f"{TITLES[program]}: {ratio:.3f} times, at least {least:g}", ratio >= least))
    if "predictor" in speed:
        lines += answer_targets(workload)
    return lines


def answer_targets(workload: Workload) -> list[tuple[str, bool]]:
    """Whether ``score`` answers as the loop with the predictor does, and locates as many lesions as the generator."""
    score, predictor = score_answers(workload), baseline_answers("predictor", workload)
    generator = baseline_answers("generator", workload)
    overlap = float(np.mean([iou(score[name][0], mask) for name, (mask, _) in predictor.items()]))
    same_labels = float(np.mean([score[name][1] == label for name, (_, label) in predictor.items()]))
    ours, theirs = cover({name: score[name] for name in generator}, workload), cover(generator, workload)
    covers = f"covered in {ours.covered:.3f} and {theirs.covered:.3f}, {ours.kept:.2f} and {theirs.kept:.2f} kept"
    return [
        (f"IoU with the predictor's masks {overlap:.4f}, at least {MIN_IOU}", overlap >= MIN_IOU),
        (f"labels as the predictor's {same_labels:.4f}, at least {MIN_SAME_LABELS}", same_labels >= MIN_SAME_LABELS),
        (
            f"lesions located in {ours.located:.3f}, by the generator in {theirs.located:.3f} ({covers})",
            ours.located >= theirs.located,
        ),
    ]


def print_table(models: str, measurements: Mapping[str, Measurement]) -> None:
    """Print one row for each program."""
    print(f"| {models} models | images | images/s | of the models alone | seconds in all | MiB |")
    print("|---|---|---|---|---|---|")
    for program, row in measurements.items():
        share = row.speed / measurements["ceiling"].speed
        figures = f"{row.images} | {row.speed:.2f} | {share:.2f} | {row.total_seconds:.0f} | {row.mebibytes}"
        print(f"| {TITLES[program]} | {figures} |", flush=True)


def main() -> int:
    """Print the table and the targets; 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", choices=("starter", "full"), default="starter", help="(default: starter)")
    parser.add_argument("--images", type=int, help=f"number of images that score gets (default: {IMAGES})")
    call = parser.parse_args()
    if call.models == "starter" and not importlib.util.find_spec("daft"):
        parser.error("Daft is missing, one of the other programs: pip install 'medfocus[peers]'")
    count = call.images or IMAGES[call.models]
    if count < min_score_images():
        parser.error(f"--images: {count} are too few; this machine needs at least {min_score_images()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_full_size(folder) if call.models == "full" else []
        workload = prepare(folder / "archive", count, settings)
        measurements = measure(workload, call.models, count)
        sums = {program: reduce(add, rows) for program, rows in measurements.items()}
        print_table(call.models, sums)
        alone = [row.speed for row in measurements["ceiling"]]
        drift = max(alone) / min(alone) - 1
        lines = targets(call.models, {program: row.speed for program, row in sums.items()}, drift, workload)
    print("\n" + "\n".join(f"{target}: {'met' if met else 'MISSED'}" for target, met in lines))
    return 0 if all(met for _, met in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
