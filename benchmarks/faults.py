"""``python -m benchmarks.faults``: what is lost, doubled or done again when a run is broken, on an S3 server over HTTP.

Each fault is injected into a run of its own over the same archive; where the run ends by it, the same call is made
again. Prints the table and exits 1 where a row is lost, doubled or differs from an undisturbed run's, or where a kill
halfway costs too much work.
"""

import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import boto3

from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import embed, pack, train
from medfocus.pipeline.config import load_config
from medfocus.starter.phantoms import write_set
from tests import servers
from tests.faults.injection import ALL_WELL, Scoring, account, ended, failing_s3, kill, kill_at_work, wait_until

SHARDS, ROWS, SEED = 40, 6, 6_000_000
# How much more images may pass SAM2 when the driver is killed at half of the shards.
MOST_WORK = 1.15
KILLS, FAILING = 5, 0.02


@dataclass(frozen=True)
class Archive:
    """Shards on S3, what is in them, a model, and the settings of every call."""

    bucket: str
    images: frozenset[str]
    model: str
    settings: list[str]
    folder: Path

    def scoring(self, name: str) -> Scoring:
        count = self.folder / f"{name}.count"
        count.touch()
        out = f"{self.bucket}/{name}"
        return Scoring(f"{self.bucket}/shards", out, self.model, self.settings, {"FAULT_COUNT": str(count)})


def work(scoring: Scoring) -> int:
    """Images that went through SAM2 in all calls of a run."""
    return sum(map(int, Path(scoring.environment["FAULT_COUNT"]).read_text().split()))


def prepare(folder: Path) -> Archive:
    """Phantoms on S3, half of them labelled, and a model trained on these."""
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="faults")
    settings = [f"work={folder / 'work'}", "segment.points_per_side=2", "score.max_quarantined=0.5"]
    config = load_config(None, [*settings, f"pack.rows_per_shard={ROWS}", "train.epochs=2"])
    write_set(folder / "archive", SHARDS * ROWS, seed=SEED, preset="easy", size=256)
    write_set(folder / "labelled", 2 * ROWS * 4, seed=SEED + 1, preset="easy", size=256)
    with connected(None, None):
        pack.run(config, str(folder / "archive" / "images"), "s3://faults/shards", None)
        labels = str(folder / "labelled" / "labels.csv")
        pack.run(config, str(folder / "labelled" / "images"), "s3://faults/labelled", labels)
        embed.run(config, "s3://faults/labelled", "s3://faults/features")
        model = train.run(config, "s3://faults/features", "faults")["model_uri"]
    images = frozenset(path.name for path in (folder / "archive" / "images").iterdir())
    return Archive("s3://faults", images, model, settings, folder)


def reached(scoring: Scoring, shards: int) -> Callable[[], bool]:
    """Whether the predictions of so many shards are there."""
    return lambda: scoring.parts() >= shards


def killed_halfway(scoring: Scoring) -> int:
    """The driver with all that it started, when half of the shards are there."""
    process = scoring.start()
    wait_until(reached(scoring, SHARDS // 2), process)
    kill(process)
    scoring.finish()
    return 1


def killed_at_random(scoring: Scoring) -> int:
    """The driver, at moments of which some come before anything is written."""
    dice = random.Random(SEED)
    for _ in range(KILLS):
        process, more = scoring.start(), scoring.parts() + dice.randrange(0, 6)
        wait_until(reached(scoring, more), process)
        kill(process)
    scoring.finish()
    return KILLS


def actors_killed(scoring: Scoring) -> int:
    """All actors that hold the models, twice in the course of the run."""
    process, killed = scoring.start(), 0
    for moment in (SHARDS // 4, SHARDS // 2):
        wait_until(reached(scoring, moment), process)
        killed += kill_at_work(process, "ModelActor")
    ended(process)
    return killed


def storage_fails(scoring: Scoring) -> int:
    """Some of all requests are answered 503 or 500, reset, or answered late."""
    with failing_s3(os.environ["AWS_ENDPOINT_URL"], FAILING, SEED) as (url, proxy):
        flaky = replace(scoring, environment=scoring.environment | {"AWS_ENDPOINT_URL": url})
        flaky.finish()
    return sum(proxy.faults.values())


def row_kills(archive: Archive) -> Callable[[Scoring], int]:
    """An image that kills each process that decodes it."""

    def run(scoring: Scoring) -> int:
        content = (archive.folder / "archive" / "images" / min(archive.images)).read_bytes()
        scoring.environment["FAULT_KILL_ON"] = content[-40:-24].hex()
        return int(scoring.finish()["quarantined"])

    return run


def main() -> int:
    bad = False
    with tempfile.TemporaryDirectory() as name, servers.s3() as url:
        os.environ |= servers.s3_user(url)
        archive = prepare(Path(name))
        undisturbed = archive.scoring("undisturbed")
        undisturbed.finish()
        reference = {row["image_id"]: row for row in undisturbed.rows("predictions")}
        plain = work(undisturbed)
        print(f"{len(archive.images)} images in {SHARDS} shards, {plain} through SAM2 in an undisturbed run\n")
        print(
            "| fault | times injected | rows lost | rows doubled | rows that differ | work |\n|---|---|---|---|---|---|"
        )
        for number, (fault, inject) in enumerate(
            {
                "driver killed at half of the shards": killed_halfway,
                "driver killed at random": killed_at_random,
                "the models' actors killed": actors_killed,
                f"S3: {FAILING:.0%} of requests fail": storage_fails,
                "an image that kills its process": row_kills(archive),
            }.items()
        ):
            scoring = archive.scoring(f"fault-{number}")
            times = inject(scoring)
            found = account(scoring, set(archive.images), reference)
            share = work(scoring) / plain
            print(
                f"| {fault} | {times} | {found.lost} | {found.doubled} | {found.different} | {share:.3f} |", flush=True
            )
            bad |= found != ALL_WELL or (number == 0 and share > MOST_WORK)
    print(f"\nnothing lost, doubled or different, a kill at half at most {MOST_WORK}: {'MISSED' if bad else 'met'}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
