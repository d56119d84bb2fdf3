"""CPU time of each stage of ``score``, and bytes that pass between the stages.

Usage: ``python -m benchmarks.stages [--images 320] [--costs FILE]``

Scores packed phantoms once. The calls of each stage are timed in the processes that run them. Prints a table of CPU
milliseconds an image, then the bytes of the batches that go through the object store and the share of time that the
actors with the models wait. ``--costs`` writes the file that ``python -m benchmarks.scale`` reads. There is no target.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.throughput.workload import Workload, prepare
from medfocus.cluster.connect import connected
from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.console.logs import progress
from medfocus.pipeline.data.commit import PREDICTIONS, Output
from medfocus.pipeline.data.manifest import read_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.execution import actor, stream
from medfocus.pipeline.execution.decode import read_and_decode
from medfocus.pipeline.execution.job import JobSpec, Provenance
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.model import load_model
from medfocus.stages.batch import Batch

STAGES = ("decode", "segment", "embed", "commit")
# Environment variable: the folder where each worker process writes a file of its calls.
CALLS_FOLDER = "MEDFOCUS_BENCHMARK_CALLS"


def call_timed(stage: str, function: Callable[..., Any], batch: Batch, *arguments: Any, **keywords: Any) -> Any:
    """Call a stage, and append its time and the size of its batch to this process's file of calls.

    Args:
        stage: one of ``STAGES``.
        function: the stage.
        batch: what it gets first.
        *arguments: what else it gets.
        **keywords: what else it gets by name.

    Returns:
        What the stage returns.
    """
    began, cpu = time.time(), time.process_time()
    answer = function(batch, *arguments, **keywords)
    call = {
        "stage": stage,
        "process": os.getpid(),
        "began": began,
        "seconds": time.time() - began,
        "cpu": time.process_time() - cpu,
        "rows": len(next(iter(batch.values()))),
        "bytes": sum(column_bytes(column) for column in batch.values()),
    }
    with (Path(os.environ[CALLS_FOLDER]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    return answer


def column_bytes(column: Any) -> int:
    """Size of a column; for one of objects the sum of their lengths."""
    return int(column.nbytes) if column.dtype != object else sum(len(value) for value in column)


class TimedModels(actor.ModelActor):
    """The actor with the models, whose stages are timed."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.segment = partial(call_timed, "segment", self.segment)  # type: ignore[assignment]

    def _embed(self, batch: Batch) -> Batch:
        return call_timed("embed", super()._embed, batch)

    def _commit(self, batch: Batch) -> dict[str, list]:
        return call_timed("commit", super()._commit, batch)


def timed_decode(batch: Batch, **keywords: Any) -> Batch:
    """``read_and_decode``, timed."""
    return call_timed("decode", read_and_decode, batch, **keywords)


@dataclass(frozen=True)
class StageCosts:
    """What ``score`` costs.

    Args:
        cpu: CPU seconds an image of each stage; ``decode`` and ``commit`` include what a shard costs in them.
        object_store_bytes: bytes an image of the batches that go to the models through the object store.
        waiting: share of the time from the actors' first call to their last in which their models do not work.
        start: seconds before an actor's first call.
        image_bytes: size of the shards, an image.
        row_bytes: size of the predictions, an image.
        rows_per_shard: number of images in a shard.
    """

    cpu: dict[str, float]
    object_store_bytes: float
    waiting: float
    start: float
    image_bytes: float
    row_bytes: float
    rows_per_shard: float


def measure(workload: Workload) -> StageCosts:
    """Score all shards in a Ray that this process starts, and sum up the calls."""
    calls = workload.folder / "calls"
    calls.mkdir()
    os.environ[CALLS_FOLDER] = str(calls)
    stream.ModelActor = TimedModels  # type: ignore[assignment, misc]
    stream.read_and_decode = timed_decode  # type: ignore[assignment]
    config, model = workload.config, load_model(workload.model)
    source, out = (locate(str(place), config.storage) for place in (workload.shards, workload.folder / "out"))
    manifest = read_manifest(source)
    began = time.time()
    with connected(None, None) as resources, progress("score", manifest.rows, 0, lambda *_: None) as bar:
        provenance = Provenance("benchmark", model.settings.classes)
        output = Output(out, PREDICTIONS)
        output.begin({}, manifest)
        side = model_files.image_size(config.segment, config.storage)
        job = JobSpec(source, output, config, model.foundation, side, provenance, model.prompts(None))
        stream.run_shards(manifest.shards, job, plan_resources([resources]), bar)
    return sum_calls(pd.DataFrame(_read_calls(calls)), began, workload)


def _read_calls(folder: Path) -> Iterator[dict[str, Any]]:
    for file in folder.iterdir():
        yield from map(json.loads, file.read_text().splitlines())


def sum_calls(calls: pd.DataFrame, began: float, workload: Workload) -> StageCosts:
    """Costs from the calls of a run.

    Args:
        calls: one row for each call, with the keys that ``call_timed`` writes.
        began: when the run began, in seconds since the epoch.
        workload: what was scored; its folder holds the output.
    """
    calls["ended"] = calls.began + calls.seconds
    by_stage, models = calls.groupby("stage"), calls[calls.stage.isin(["segment", "embed"])]
    images = int(by_stage.rows.sum()["commit"])
    span = (models.ended.max() - models.began.min()) * models.process.nunique()
    folders = {"in": workload.shards, "out": workload.folder / "out" / PREDICTIONS}
    sizes = {name: sum(file.stat().st_size for file in folder.glob("*.parquet")) for name, folder in folders.items()}
    return StageCosts(
        cpu={stage: by_stage.cpu.sum()[stage] / images for stage in STAGES},
        object_store_bytes=by_stage.bytes.sum()["segment"] / images,
        waiting=1 - models.seconds.sum() / span,
        start=models.began.min() - began,
        image_bytes=sizes["in"] / images,
        row_bytes=sizes["out"] / images,
        rows_per_shard=images / by_stage.size()["commit"],
    )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=320, help="number of images to score (default: 320)")
    parser.add_argument("--costs", type=Path, help="JSON file to write the costs to")
    call = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        costs = measure(prepare(Path(name) / "archive", call.images, []))
    print("| stage | CPU ms an image |\n|---|---|")
    for stage in STAGES:
        print(f"| {stage} | {1000 * costs.cpu[stage]:.2f} |")
    print(f"\nthrough the object store to the models, an image: {costs.object_store_bytes / 1024:.1f} KiB")
    print(f"the models wait {costs.waiting:.1%} of the time; their first batch came after {costs.start:.1f} s")
    if call.costs:
        call.costs.write_text(json.dumps(asdict(costs), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
