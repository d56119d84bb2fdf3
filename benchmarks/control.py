"""Time and driver memory that ``score`` itself takes over many shards, with an actor that has no models.

Usage: ``python -m benchmarks.control [--shards 100000]``

Two runs over an archive of shards of one image each, each in a process of its own: a new run until its first commit
(read the manifest, list the finished shards, start Ray), and a run that resumes where 99 % of the shards are finished,
to its end. Prints a table of the seconds and the driver's peak memory of both. The target for both is less than 60
seconds and 1024 MiB. The last line says ``met`` or ``MISSED``; the exit code is 1 where it is missed.
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
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from benchmarks.no_models import NoModels
from benchmarks.untrained_model import untrained_model
from medfocus.pipeline.commands import score
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import Progress
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import PREDICTIONS, QUARANTINE, Output, part_name
from medfocus.pipeline.data.manifest import ShardEntry, write_manifest
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.execution import stream
from medfocus.pipeline.models.registry import resolve_model
from medfocus.starter.phantoms import write_set

MAX_SECONDS, MAX_MIB = 60.0, 1024
# One shard in so many is unfinished, and one that is finished has a quarantined row.
UNFINISHED_EVERY = 100


def config_in(folder: Path) -> Config:
    """Configuration of every call: the defaults, with the work folder below ``folder``."""
    return Config(work=str(folder / "work"))


def prepare(folder: Path, count: int) -> None:
    """Write an archive, a model, and the output of a run that has finished 99 % of the shards.

    The manifest lists all shards. Only the shards that are read exist: one in ``UNFINISHED_EVERY``.

    Args:
        folder: where ``shards``, ``model`` and ``finished`` are written.
        count: number of shards, of one image each.
    """
    config = config_in(folder)
    entries = _write_shards(folder, count, config)
    manifest = write_manifest(locate(str(folder / "shards"), config.storage), entries)
    untrained_model(config, ("one", "other")).save(folder / "model")
    model, version = resolve_model(str(folder / "model"), config)
    output = locate(str(folder / "finished"), config.storage)
    Output(output, PREDICTIONS).begin(score.run_settings(model, version, model.prompts(None), config), manifest)
    _write_finished(folder, entries, output)


def _write_shards(folder: Path, count: int, config: Config) -> list[ShardEntry]:
    source = locate(str(folder / "shards"), config.storage)
    write_set(folder / "one", 1, seed=0, preset="easy", size=64)
    image = next((folder / "one" / "images").iterdir()).read_bytes()
    entries = []
    for index in range(count):
        name, digest = f"shard-{index:06d}.parquet", hashlib.sha256(str(index).encode()).hexdigest()
        entries.append(ShardEntry(name, 1, 1, digest))
        if index % UNFINISHED_EVERY == 0:
            row = {
                "image_id": f"{index}.png",
                "image": image,
                "media_type": "image/png",
                "source_uri": "x",
                "sha256": "x",
            }
            content = records.encode(records.shard_table({key: [value] for key, value in row.items()}))
            (source / name).write(content)
            entries[-1] = ShardEntry(name, 1, len(content), hashlib.sha256(content).hexdigest())
    return entries


def _write_finished(folder: Path, entries: list[ShardEntry], output: Location) -> None:
    row = {"image_id": ["x"], "source_uri": ["x"], "stage": ["decode"], "error": ["Undecodable"], "message": ["x"]}
    quarantined = records.encode(pa.table(row, schema=records.QUARANTINE))
    for kind in (PREDICTIONS, QUARANTINE):
        (folder / "finished" / kind).mkdir(parents=True)
    for index, entry in enumerate(entries):
        if index % UNFINISHED_EVERY:  # files of predictions are listed, not read
            (folder / "finished" / PREDICTIONS / part_name(entry.key)).touch()
        if index % UNFINISHED_EVERY == 1:
            (output / QUARANTINE / part_name(entry.key)).write(quarantined)


class _FirstCommit(Exception):
    """The first shard has been committed."""


@dataclass(frozen=True)
class RunCost:
    """Cost of one run.

    Args:
        seconds: duration of the run.
        mebibytes: peak resident memory of the driver.
        shard_seconds: mean time from one commit to the next.
    """

    seconds: float
    mebibytes: int
    shard_seconds: float


def measure_start(folder: Path) -> RunCost:
    """Measure a new run until its first shard is committed."""

    def stop() -> None:
        raise _FirstCommit

    return _measure(folder, "new", stop)


def measure_resume(folder: Path) -> RunCost:
    """Measure a run that resumes where 99 % of the shards are finished, to its end."""
    return _measure(folder, "finished", lambda: None)


def _measure(folder: Path, out: str, after_commit: Callable[[], None]) -> RunCost:
    stream.ModelActor = NoModels  # type: ignore[assignment, misc]
    commits = []

    def record_commit(_progress: Progress, _rows: int, _quarantined: int) -> None:
        commits.append(time.monotonic())
        after_commit()

    Progress.add = record_commit  # type: ignore[method-assign, assignment]
    started = time.monotonic()
    with contextlib.suppress(_FirstCommit):
        score.run(config_in(folder), str(folder / "shards"), str(folder / out), str(folder / "model"))
    seconds = time.monotonic() - started
    shard_seconds = (commits[-1] - commits[0]) / max(len(commits) - 1, 1)
    return RunCost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, shard_seconds)


def in_new_process(measure: Callable[[Path], RunCost], folder: Path) -> RunCost:
    """Call a function in a process of its own, so that its peak memory is that of one run."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, folder).result()


def main() -> int:
    """Print the table; 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.control", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=100_000, help="number of shards in the archive (default: 100000)")
    count = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, count)
        print(f"| {count} shards | seconds | MiB of the driver |\n|---|---|---|")
        met = True
        runs = (("new, until the first is committed", measure_start), ("99 % finished, to the end", measure_resume))
        for title, measure in runs:
            cost = in_new_process(measure, folder)
            print(f"| {title} | {cost.seconds:.1f} | {cost.mebibytes} |", flush=True)
            met &= cost.seconds < MAX_SECONDS and cost.mebibytes < MAX_MIB
    print(f"\n{1000 * cost.shard_seconds:.1f} ms for each unfinished shard")
    print(f"under {MAX_SECONDS:.0f} s and {MAX_MIB} MiB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
