"""Rows lost, duplicated or changed, and work repeated, when ``score`` is broken by a fault.

Usage: ``python -m benchmarks.faults [--shards 40]``

The archive and the output are on an S3 server over HTTP. Each fault is injected into a run of its own over the same
archive. Where the fault ends the run, the same call is made again. Prints a table with one row for each fault. The
target is that no row is lost or duplicated and none differs from an undisturbed run's, and that after a kill of the
driver halfway at most 1.15 times the images pass SAM2. The last line says ``met`` or ``MISSED``; the exit code is 1
where it is missed.
"""

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3

from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import embed, pack, train
from medfocus.pipeline.config import load_config
from medfocus.starter.phantoms import write_set
from tests import servers
from tests.faults.injection import (
    NO_DIFFERENCE,
    OutputDifference,
    ScoreCommand,
    compare_output,
    failing_s3,
    kill,
    kill_busy_actors,
    wait_for_result,
    wait_until,
)

SHARDS, ROWS, SEED = 40, 6, 6_000_000
# Images through SAM2 in all calls, relative to an undisturbed run, when the driver is killed at half of the shards.
MAX_WORK = 1.15
KILLS, FAILING_SHARE = 5, 0.02


@dataclass(frozen=True)
class Archive:
    """Shards on S3 and a model for them.

    Args:
        bucket: URI of the bucket.
        shards: number of shards.
        images: every ``image_id`` in the shards.
        model: URI of the model.
        settings: ``section.key=value`` settings of every call.
        folder: local folder with the images.
    """

    bucket: str
    shards: int
    images: frozenset[str]
    model: str
    settings: list[str]
    folder: Path

    def command(self, name: str) -> ScoreCommand:
        """The call of ``score`` whose output has this name in the bucket."""
        count = self.folder / f"{name}.count"
        count.touch()
        out = f"{self.bucket}/{name}"
        return ScoreCommand(f"{self.bucket}/shards", out, self.model, self.settings, {"FAULT_COUNT": str(count)})


def segmented_images(command: ScoreCommand) -> int:
    """Number of images that went through SAM2 in all calls of a command."""
    return sum(map(int, Path(command.environment["FAULT_COUNT"]).read_text().split()))


def prepare(folder: Path, shards: int) -> Archive:
    """Pack phantoms to S3 and train a model on other, labelled phantoms."""
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="faults")
    settings = [f"work={folder / 'work'}", "segment.points_per_side=2", "score.max_quarantined=0.5"]
    config = load_config(None, [*settings, f"pack.rows_per_shard={ROWS}", "deid.names=keep", "train.epochs=2"])
    write_set(folder / "archive", shards * ROWS, seed=SEED, preset="easy", size=256)
    write_set(folder / "labelled", 2 * ROWS * 4, seed=SEED + 1, preset="easy", size=256)
    with connected(None, None):
        pack.run(config, str(folder / "archive" / "images"), "s3://faults/shards", None)
        labels = str(folder / "labelled" / "labels.csv")
        pack.run(config, str(folder / "labelled" / "images"), "s3://faults/labelled", labels)
        embed.run(config, "s3://faults/labelled", "s3://faults/features")
        model = train.run(config, "s3://faults/features", "faults")["model_uri"]
    images = frozenset(path.name for path in (folder / "archive" / "images").iterdir())
    return Archive("s3://faults", shards, images, model, settings, folder)


def has_predictions(command: ScoreCommand, shards: int) -> Callable[[], bool]:
    """A condition: the predictions of at least so many shards are committed."""
    return lambda: command.parts() >= shards


def kill_driver_halfway(command: ScoreCommand, archive: Archive) -> int:
    """Kill the driver and all that it started when half of the shards are committed, and call again."""
    process = command.start()
    wait_until(has_predictions(command, archive.shards // 2), process)
    kill(process)
    command.finish()
    return 1


def kill_driver_at_random(command: ScoreCommand, _archive: Archive) -> int:
    """Kill the driver several times, at some moments before anything is committed."""
    dice = random.Random(SEED)
    for _ in range(KILLS):
        process, shards = command.start(), command.parts() + dice.randrange(0, 6)
        wait_until(has_predictions(command, shards), process)
        kill(process)
    command.finish()
    return KILLS


def kill_actors(command: ScoreCommand, archive: Archive) -> int:
    """Kill all actors that hold the models, at a quarter and at half of the shards."""
    process, killed = command.start(), 0
    for shards in (archive.shards // 4, archive.shards // 2):
        wait_until(has_predictions(command, shards), process)
        killed += kill_busy_actors(process, "ModelActor")
    wait_for_result(process)
    return killed


def fail_s3_requests(command: ScoreCommand, _archive: Archive) -> int:
    """Answer a share of all requests with 503 or 500, reset them, or answer them late."""
    with failing_s3(os.environ["AWS_ENDPOINT_URL"], FAILING_SHARE, SEED) as (url, proxy):
        replace(command, environment=command.environment | {"AWS_ENDPOINT_URL": url}).finish()
    return sum(proxy.faults.values())


def kill_on_one_image(command: ScoreCommand, archive: Archive) -> int:
    """Make one image kill each process that decodes it; the number of rows in quarantine."""
    content = (archive.folder / "archive" / "images" / min(archive.images)).read_bytes()
    command.environment["FAULT_KILL_ON"] = content[-40:-24].hex()
    return int(command.finish()["quarantined"])


# Name of each fault in the table, and the function that injects it and returns how often.
FAULTS: dict[str, Callable[[ScoreCommand, Archive], int]] = {
    "driver killed at half of the shards": kill_driver_halfway,
    "driver killed at random": kill_driver_at_random,
    "the models' actors killed": kill_actors,
    f"S3: {FAILING_SHARE:.0%} of requests fail": fail_s3_requests,
    "an image that kills its process": kill_on_one_image,
}


@dataclass(frozen=True)
class FaultCost:
    """What one fault did to an output.

    Args:
        times: how often the fault was injected.
        difference: rows lost, duplicated or changed.
        work: images through SAM2, relative to an undisturbed run.
    """

    times: int
    difference: OutputDifference
    work: float


def measure_fault(fault: str, archive: Archive, reference: Mapping[str, dict[str, Any]], images: int) -> FaultCost:
    """Inject one fault and compare the output with an undisturbed run's.

    Args:
        fault: a key of ``FAULTS``.
        archive: what is scored.
        reference: prediction rows of the undisturbed run by ``image_id``.
        images: number of images that went through SAM2 in the undisturbed run.
    """
    command = archive.command(f"fault-{list(FAULTS).index(fault)}")
    times = FAULTS[fault](command, archive)
    difference = compare_output(command, set(archive.images), reference)
    return FaultCost(times, difference, segmented_images(command) / images)


def main() -> int:
    """Print the table; 1 where the target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=SHARDS, help=f"number of shards, {ROWS} images each ({SHARDS})")
    call = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory() as name, servers.s3() as url:
        os.environ |= servers.s3_user(url)
        archive = prepare(Path(name), call.shards)
        undisturbed = archive.command("undisturbed")
        undisturbed.finish()
        reference = {row["image_id"]: row for row in undisturbed.rows("predictions")}
        images = segmented_images(undisturbed)
        print(f"{len(archive.images)} images in {call.shards} shards, {images} through SAM2 in an undisturbed run\n")
        print("| fault | times injected | rows lost | rows doubled | rows that differ | work |")
        print("|---|---|---|---|---|---|")
        for fault in FAULTS:
            cost = measure_fault(fault, archive, reference, images)
            rows = f"{cost.difference.lost} | {cost.difference.doubled} | {cost.difference.different}"
            print(f"| {fault} | {cost.times} | {rows} | {cost.work:.3f} |", flush=True)
            met &= cost.difference == NO_DIFFERENCE
            met &= FAULTS[fault] is not kill_driver_halfway or cost.work <= MAX_WORK
    print(f"\nnothing lost, doubled or different, a kill at half at most {MAX_WORK}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
