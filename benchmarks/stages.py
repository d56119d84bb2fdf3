"""``python -m benchmarks.stages``: what each stage of ``score`` costs, and what passes between them.

One run over packed phantoms, with the stages' own calls timed where they run: CPU seconds an image, the share of the
time that the models' actors wait, and the bytes of the batches that go through the object store.
Prints the table; ``--costs FILE`` keeps what ``python -m benchmarks.scale`` reads.
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

from benchmarks.throughput.work import Workload, prepare
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
# Where the workers write down their calls, a file for each process.
FOLDER = "MEDFOCUS_BENCHMARK_CALLS"


def timed(stage: str, work: Callable[..., Any], batch: Batch, *given: Any, **named: Any) -> Any:
    """The work's answer; the call is written down."""
    began, cpu = time.time(), time.process_time()
    answer = work(batch, *given, **named)
    call = {
        "stage": stage,
        "process": os.getpid(),
        "began": began,
        "seconds": time.time() - began,
        "cpu": time.process_time() - cpu,
        "rows": len(next(iter(batch.values()))),
        "bytes": sum(held(column) for column in batch.values()),
    }
    with (Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    return answer


def held(column: Any) -> int:
    """Bytes of a column, those of its objects included."""
    return int(column.nbytes) if column.dtype != object else sum(len(value) for value in column)


class TimedModels(actor.ModelActor):
    def __init__(self, *given: Any):
        super().__init__(*given)
        self.segment = partial(timed, "segment", self.segment)  # type: ignore[assignment]

    def _embed(self, batch: Batch) -> Batch:
        return timed("embed", super()._embed, batch)

    def _commit(self, batch: Batch) -> dict[str, list]:
        return timed("commit", super()._commit, batch)


def timed_decode(batch: Batch, **given: Any) -> Batch:
    return timed("decode", read_and_decode, batch, **given)


@dataclass(frozen=True)
class Costs:
    """What ``score`` costs: CPU seconds and bytes an image for each stage, seconds for what comes once."""

    cpu: dict[str, float]  # seconds an image; commit and decode have what a shard costs in it
    stored: float  # bytes an image through the object store, to the models
    waiting: float  # share of the time from the actors' first call to their last that no model worked
    start: float  # seconds before the first call of an actor
    image_bytes: float  # of a shard, an image
    row_bytes: float  # of the predictions, an image
    rows_per_shard: float


def measure(work: Workload) -> Costs:
    """Score all shards in this process's Ray, and sum up."""
    calls = work.folder / "calls"
    calls.mkdir()
    os.environ[FOLDER] = str(calls)
    stream.ModelActor = TimedModels  # type: ignore[assignment, misc]
    stream.read_and_decode = timed_decode  # type: ignore[assignment]
    config, model = work.config, load_model(work.model)
    source, out = (locate(str(place), config.storage) for place in (work.shards, work.folder / "out"))
    manifest = read_manifest(source)
    began = time.time()
    with connected(None, None) as resources, progress("score", manifest.rows, 0, lambda *_: None) as shown:
        provenance = Provenance("benchmark", model.settings.classes)
        output = Output(out, PREDICTIONS)
        output.begin({}, manifest)
        side = model_files.image_size(config.segment, config.storage)
        whole = JobSpec(source, output, config, model.foundation, side, provenance, model.prompts(None))
        stream.run_shards(manifest.shards, whole, plan_resources(resources), shown)
    return summed(pd.DataFrame(_read(calls)), began, work)


def _read(calls: Path) -> Iterator[dict[str, Any]]:
    for file in calls.iterdir():
        yield from map(json.loads, file.read_text().splitlines())


def summed(calls: pd.DataFrame, began: float, work: Workload) -> Costs:
    calls["ended"] = calls.began + calls.seconds
    by_stage, models = calls.groupby("stage"), calls[calls.stage.isin(["segment", "embed"])]
    images = int(by_stage.rows.sum()["commit"])
    span = (models.ended.max() - models.began.min()) * models.process.nunique()
    folders = {"in": work.shards, "out": work.folder / "out" / PREDICTIONS}
    sizes = {name: sum(file.stat().st_size for file in folder.glob("*.parquet")) for name, folder in folders.items()}
    return Costs(
        cpu={stage: by_stage.cpu.sum()[stage] / images for stage in STAGES},
        stored=by_stage.bytes.sum()["segment"] / images,
        waiting=1 - models.seconds.sum() / span,
        start=models.began.min() - began,
        image_bytes=sizes["in"] / images,
        row_bytes=sizes["out"] / images,
        rows_per_shard=images / by_stage.size()["commit"],
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--images", type=int, default=320, help="that are scored (default: 320)")
    parser.add_argument("--costs", type=Path, help="a file to keep the costs in, as JSON")
    call = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        costs = measure(prepare(Path(name) / "archive", call.images, []))
    print("| stage | CPU ms an image |\n|---|---|")
    for stage in STAGES:
        print(f"| {stage} | {1000 * costs.cpu[stage]:.2f} |")
    print(f"\nthrough the object store to the models, an image: {costs.stored / 1024:.1f} KiB")
    print(f"the models wait {costs.waiting:.1%} of the time; their first batch came after {costs.start:.1f} s")
    if call.costs:
        call.costs.write_text(json.dumps(asdict(costs), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
