"""``python -m benchmarks.control``: what ``score`` itself takes over 100,000 shards, with models that do nothing.

A run that begins: the manifest is read, finished shards are listed, Ray starts, until the first shard is committed. A
run that goes on where 99 % of the shards are finished, to its end: its stream, its commits, its summary. Each in a
process of its own, whose peak memory is that of the driver. Prints the table and exits 1 where a target is missed.
"""

import argparse
import contextlib
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from benchmarks.nothing import NoModels
from benchmarks.untrained import untrained
from medfocus.pipeline.commands import score
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import Progress
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import PREDICTIONS, QUARANTINE, Output, part_name
from medfocus.pipeline.data.manifest import ShardEntry, write_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.execution import stream
from medfocus.pipeline.ingest.shard_writer import ImageFile, write_shard
from medfocus.pipeline.models.registry import resolve_model
from medfocus.starter.phantoms import write_set

MOST_SECONDS, MOST_MIB = 60.0, 1024
# Of a hundred shards one is unfinished, and one that is finished has a quarantined row.
UNFINISHED = 100


def settings(folder: Path) -> Config:
    return Config(work=str(folder / "work"))


def prepare(folder: Path, count: int) -> None:
    """The manifest of an archive of shards of one image, of which those exist that will be read; a model; outputs."""
    config = settings(folder)
    source, output = (locate(str(folder / name), config.storage) for name in ("shards", "finished"))
    write_set(folder / "one", 1, seed=0, preset="easy", size=64)
    image = next((folder / "one" / "images").iterdir())
    (folder / "images").mkdir()
    entries = []
    for index in range(count):
        name, digest = f"shard-{index:06d}.parquet", hashlib.sha256(str(index).encode()).hexdigest()
        entries.append(ShardEntry(name, 1, 1, digest))
        if index % UNFINISHED == 0:
            (folder / "images" / f"{index}.png").symlink_to(image)
            plan = {"name": name, "images": [vars(ImageFile(f"{index}.png", f"{index}.png".encode(), 1))]}
            made = write_shard(plan, locate(str(folder / "images"), config.storage), source)
            entries[-1] = ShardEntry(**{field.name: made[field.name] for field in fields(ShardEntry)})
    manifest = write_manifest(source, entries)
    untrained(config, ("one", "other")).save(folder / "model")
    model, version = resolve_model(str(folder / "model"), config)
    Output(output, PREDICTIONS).begin(score.run_settings(model, version, model.prompts(None), config), manifest)
    row = {"image_id": ["x"], "source_uri": ["x"], "stage": ["decode"], "error": ["Undecodable"], "message": ["x"]}
    quarantined = records.encode(pa.table(row, schema=records.QUARANTINE))
    for kind in (PREDICTIONS, QUARANTINE):
        (folder / "finished" / kind).mkdir(parents=True)
    for index, entry in enumerate(entries):
        if index % UNFINISHED:  # a rows file is not read, only listed
            (folder / "finished" / PREDICTIONS / part_name(entry.sha256)).touch()
        if index % UNFINISHED == 1:
            (output / QUARANTINE / part_name(entry.sha256)).write(quarantined)


class _FirstShard(Exception):
    """The first shard has been committed."""


@dataclass(frozen=True)
class Run:
    """Seconds of a run, peak MiB of its driver, and the seconds from a shard's commit to the next one's."""

    seconds: float
    mebibytes: int
    a_shard: float


def begun(folder: Path) -> Run:
    """A new run, until its first shard is committed."""

    def stop() -> None:
        raise _FirstShard

    return _measured(folder, "new", stop)


def resumed(folder: Path) -> Run:
    """A run that goes on where most shards are finished, to its end."""
    return _measured(folder, "finished", lambda: None)


def _measured(folder: Path, out: str, after_shard: Callable[[], None]) -> Run:
    stream.ModelActor = NoModels  # type: ignore[assignment, misc]
    commits = []

    def noted(_shown: Progress, _rows: int, _quarantined: int) -> None:
        commits.append(time.monotonic())
        after_shard()

    Progress.add = noted  # type: ignore[method-assign, assignment]
    started = time.monotonic()
    with contextlib.suppress(_FirstShard):
        score.run(settings(folder), str(folder / "shards"), str(folder / out), str(folder / "model"))
    seconds = time.monotonic() - started
    a_shard = (commits[-1] - commits[0]) / max(len(commits) - 1, 1)
    return Run(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, a_shard)


def alone(work: Callable[[Path], Run], folder: Path) -> Run:
    """The work's answer, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, folder).result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000, help="of the archive (default: 100000)")
    count = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, count)
        print(f"| {count} shards | seconds | MiB of the driver |\n|---|---|---|")
        met = True
        for what, work in (("new, until the first is committed", begun), ("99 % finished, to the end", resumed)):
            run = alone(work, folder)
            print(f"| {what} | {run.seconds:.1f} | {run.mebibytes} |", flush=True)
            met &= run.seconds < MOST_SECONDS and run.mebibytes < MOST_MIB
    print(f"\n{1000 * run.a_shard:.1f} ms a shard that is left")
    print(f"under {MOST_SECONDS:.0f} s and {MOST_MIB} MiB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
