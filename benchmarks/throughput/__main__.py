"""``python -m benchmarks.throughput``: images a second of ``score``, of its models alone, and of other ways.

Each way runs in a process of its own over the first of the same shards, with the same weights. The speed is counted
between its first and its last batch (``score``: its first and its last commits), so that loading counts for none; the
seconds are those of the whole process. The models alone are measured before and after ``score``, since the machine's
own speed drifts; where it drifts far, the run says nothing of the share and counts as missed. Memory is the peak of
what the process and all that it started hold each for itself. Prints the table and exits 1 where a target is missed.
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

from benchmarks.memory import held
from benchmarks.starter import Cover, covering, iou
from benchmarks.throughput.full import write_full_size
from benchmarks.throughput.work import ROWS_PER_SHARD, Workload, actors, prepare
from medfocus.pipeline.data.manifest import read_manifest, write_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.stages.masks import decode_mask
from tests import servers
from tests.faults.injection import Scoring, ended

# Images that each way is given, as a share of those that score gets; two shards at least.
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
# Full-size models take seconds an image on CPUs; how their time compares with other ways' is no other question there.
WAYS = {
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
OF_CEILING = {"starter": 0.85, "full": 0.95}
# How many times as fast as each other way score must be.
OVER = {"predictor": 1.5, "generator": 10.0, "dataloader": 1.0, "ray": 1.0, "daft": 1.0}
SAME_MASKS, SAME_LABELS = 0.99, 0.995
# By how much of the slower the models alone may be faster at one time than at another, that a share of them says much.
DRIFT = 0.15
# Seconds between readings of memory.
PAUSE = 5


@dataclass(frozen=True)
class Measured:
    """One way: images between its first and its last batch, the seconds for them and for all, and peak memory."""

    images: int
    seconds: float
    whole: float
    mebibytes: int

    @property
    def speed(self) -> float:
        return self.images / self.seconds

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(
            self.images + other.images,
            self.seconds + other.seconds,
            self.whole + other.whole,
            max(self.mebibytes, other.mebibytes),
        )


def watched(process: subprocess.Popen[str]) -> tuple[dict[str, Any], float, int]:
    """What a process answers, the seconds until it ends, and the peak MiB of it and all that it started."""
    started, most = time.monotonic(), 0
    while process.poll() is None:
        most = max(most, sum(size for _, _, size in held(psutil.Process(process.pid))))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PAUSE)
    return ended(process), time.monotonic() - started, most >> 20


def of_way(way: str, work: Workload, count: int) -> Measured:
    command = [sys.executable, "-m", "benchmarks.throughput.ways", way, str(work.folder), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    answer, whole, most = watched(process)
    return Measured(answer["images"], answer["seconds"], whole, most)


def scoring(way: str, work: Workload, shards: str) -> Scoring:
    """``medfocus score`` as a user calls it; its output is on disk."""
    return Scoring(shards, str(work.folder / way), str(work.model), work.settings)


def of_score(way: str, work: Workload, shards: str) -> Measured:
    answer, whole, most = watched(scoring(way, work, shards).start())
    moments = sorted(path.stat().st_mtime for path in (work.folder / way / "predictions").iterdir())
    first = actors()  # shards that were begun together; what follows takes the actors' whole time
    return Measured(answer["scored"] - first * ROWS_PER_SHARD, moments[-1] - moments[first - 1], whole, most)


def found_by_score(work: Workload) -> dict[str, tuple[np.ndarray, str]]:
    """Mask and label of each image."""
    rows = scoring("score", work, str(work.shards)).rows("predictions")
    return {row["image_id"]: (decode_mask(row["mask"]["counts"], *row["mask"]["size"]), row["label"]) for row in rows}


def found_by(way: str, work: Workload) -> dict[str, tuple[np.ndarray, str]]:
    rows = pq.read_table(work.folder / f"{way}.parquet").to_pylist()
    return {
        row["image_id"]: (decode_mask(row["mask_counts"], row["height"], row["width"]), row["label"]) for row in rows
    }


def cover(found: Mapping[str, tuple[np.ndarray, str]], work: Workload) -> Cover:
    """How the masks that were found cover the lesions."""
    truth = {name: Image.open(work.folder / "phantoms" / "masks" / name) for name in found}
    sides = {name: image.size for name, image in truth.items()}
    masks = [np.asarray(Image.fromarray(mask).resize(sides[name])) for name, (mask, _) in found.items()]
    return covering(masks, [np.asarray(image) > 0 for image in truth.values()])


def uploaded(work: Workload, count: int) -> str:
    """The first shards on S3."""
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="throughput")
    files = work.files(count)
    for file in files:
        client.upload_file(str(file), "throughput", f"shards/{file.name}")
    own = locate(str(work.shards), work.config.storage)
    names = {file.name for file in files}
    shards = "s3://throughput/shards"
    write_manifest(
        locate(shards, work.config.storage), [shard for shard in read_manifest(own).shards if shard.name in names]
    )
    return shards


def measure(work: Workload, models: str, count: int) -> dict[str, list[Measured]]:
    """All ways, one after the other; some come more than once."""
    measured: dict[str, list[Measured]] = {}
    for way in WAYS[models]:
        given = max(2 * ROWS_PER_SHARD, int(SHARES[way] * count))
        if way == "score":
            entry = of_score(way, work, str(work.shards))
        elif way == "score-s3":
            with servers.s3() as url:
                os.environ |= servers.s3_user(url)
                entry = of_score(way, work, uploaded(work, given))
        else:
            entry = of_way(way, work, given)
        print(f"{way}: {entry.speed:.2f} images/s", file=sys.stderr)
        measured.setdefault(way, []).append(entry)
    return measured


def targets(models: str, measured: Mapping[str, Measured], drift: float, work: Workload) -> list[tuple[str, bool]]:
    """What must be reached, each with whether it is; ``drift`` is that of the models alone, as a share."""
    speed = {way: entry.speed for way, entry in measured.items()}
    share = speed["score"] / speed["ceiling"]
    lines = [
        (f"of the models alone {share:.3f}, at least {OF_CEILING[models]}", share >= OF_CEILING[models]),
        (f"the models alone at one time and another {drift:.3f} apart, at most {DRIFT}", drift <= DRIFT),
    ]
    for way, least in OVER.items():
        if way in speed:
            over = speed["score"] / speed[way]
            lines.append((f"{TITLES[way]}: {over:.3f} times, at least {least:g}", over >= least))
    if "predictor" in speed:
        lines += same_answers(work)
    return lines


def same_answers(work: Workload) -> list[tuple[str, bool]]:
    """Whether ``score`` finds what the plain path finds, and no less than SAM2's generator."""
    ours, plain, theirs = found_by_score(work), found_by("predictor", work), found_by("generator", work)
    masks = float(np.mean([iou(ours[name][0], mask) for name, (mask, _) in plain.items()]))
    labels = float(np.mean([ours[name][1] == label for name, (_, label) in plain.items()]))
    one, other = cover({name: ours[name] for name in theirs}, work), cover(theirs, work)
    both = (("ours", one), ("the generator's", other))
    told = " and ".join(f"{whose} {entry.covered:.3f} at {entry.kept:.2f} kept" for whose, entry in both)
    return [
        (f"IoU with the plain path's masks {masks:.4f}, at least {SAME_MASKS}", masks >= SAME_MASKS),
        (f"labels as the plain path's {labels:.4f}, at least {SAME_LABELS}", labels >= SAME_LABELS),
        (
            f"lesions found in {one.found:.3f}, by the generator in {other.found:.3f} (covered in {told})",
            one.found >= other.found,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--models", choices=("starter", "full"), default="starter")
    parser.add_argument("--images", type=int, help=f"that score is given (default: {IMAGES})")
    call = parser.parse_args()
    if call.models == "starter" and not importlib.util.find_spec("daft"):
        parser.error("Daft is missing, one of the other ways: pip install 'medfocus[peers]'")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = write_full_size(folder) if call.models == "full" else []
        count = call.images or IMAGES[call.models]
        work = prepare(folder / "archive", count, settings)
        each = measure(work, call.models, count)
        measured = {way: reduce(add, entries) for way, entries in each.items()}
        print(f"| {call.models} models | images | images/s | of the models alone | seconds in all | MiB |")
        print("|---|---|---|---|---|---|")
        for way, entry in measured.items():
            share = entry.speed / measured["ceiling"].speed
            figures = f"{entry.images} | {entry.speed:.2f} | {share:.2f} | {entry.whole:.0f} | {entry.mebibytes}"
            print(f"| {TITLES[way]} | {figures} |", flush=True)
        alone = [entry.speed for entry in each["ceiling"]]
        met = targets(call.models, measured, max(alone) / min(alone) - 1, work)
    print("\n" + "\n".join(f"{what}: {'met' if good else 'MISSED'}" for what, good in met))
    return 0 if all(good for _, good in met) else 1


if __name__ == "__main__":
    sys.exit(main())
