"""``python -m benchmarks.scale COSTS``: hours and price of scoring 1, 10 and 100 million images on a cluster.

Takes what ``python -m benchmarks.stages --costs COSTS`` and ``python -m benchmarks.control`` measured, and the same
plan of actors that ``score`` would make on such a cluster. The slowest part sets the pace: the GPUs, the CPUs, the
network, the driver. ``--check`` scores phantoms on a local cluster of two nodes and holds the time against the
prediction; it exits 1 where they are farther apart than a quarter.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ray.cluster_utils import Cluster as LocalCluster

from benchmarks.stages import Costs
from benchmarks.throughput.work import ROWS_PER_SHARD, prepare
from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.config import PackSection
from medfocus.pipeline.execution.stream import _SHARDS_PER_ACTOR
from tests.faults.injection import Scoring, ended

MILLION = 1_000_000
OFF_BY = 0.25
# As ``python -m benchmarks.control`` measured on two cores, which tasks share with the driver: no less than its own.
DRIVER_MS = 32.0


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind."""

    nodes: int
    cpus: int  # of a node
    gpus: int
    gigabits: float  # a second, of a node's network
    price: float  # of a node, an hour
    gpu_seconds: float  # of both models for an image, on one GPU
    driver: float  # seconds of the driver for a shard


@dataclass(frozen=True)
class Prediction:
    """Images a second that each part could do, and the seconds for all."""

    rates: dict[str, float]
    seconds: float

    @property
    def slowest(self) -> str:
        return min(self.rates, key=lambda name: self.rates[name])


def predict(images: int, costs: Costs, cluster: Cluster, rows_per_shard: int) -> Prediction:
    """Time to score so many images."""
    resources = {"CPU": float(cluster.nodes * cluster.cpus), "GPU": float(cluster.nodes * cluster.gpus)}
    on_cpus = sum(costs.cpu.values())
    bytes_moved = costs.image_bytes + costs.row_bytes + costs.stored  # as if no two stages shared a node
    rates = {
        "network": cluster.nodes * cluster.gigabits * 1e9 / 8 / bytes_moved,
        "driver": rows_per_shard / cluster.driver,
    }
    if cluster.gpus:
        rates["GPUs"] = resources["GPU"] / cluster.gpu_seconds
        on_cpus = costs.cpu["decode"] + costs.cpu["commit"]
        together = cluster.gpu_seconds
    else:
        together = costs.cpu["segment"] + costs.cpu["embed"]
    rates["CPUs"] = resources["CPU"] / on_cpus
    shards = -(-images // rows_per_shard)
    plans = -(-shards // (_SHARDS_PER_ACTOR * plan_resources(resources).models.processes))
    # A plan of Ray Data loads the models, and at its end its last shards are alone.
    once = plans * (costs.start + rows_per_shard * together)
    return Prediction(rates, once + images / min(rates.values()))


def table(costs: Costs, cluster: Cluster) -> str:
    lines = ["| images | hours | price | slowest part | its images/s |", "|---|---|---|---|---|"]
    for images in (MILLION, 10 * MILLION, 100 * MILLION):
        found = predict(images, costs, cluster, PackSection().rows_per_shard)
        hours = found.seconds / 3600
        price = hours * cluster.nodes * cluster.price
        rate = found.rates[found.slowest]
        lines.append(f"| {images:,} | {hours:.1f} | {price:,.0f} | {found.slowest} | {rate:.1f} |")
    return "\n".join(lines)


def measured(count: int) -> float:
    """Seconds of ``score`` on a cluster of two local nodes with one CPU each."""
    with tempfile.TemporaryDirectory() as name:
        work = prepare(Path(name) / "archive", count, [])
        cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            settings = [*work.settings, f"cluster.address={cluster.address}"]
            scoring = Scoring(str(work.shards), str(work.folder / "out"), str(work.model), settings)
            return float(ended(scoring.start())["seconds"])
        finally:
            cluster.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("costs", type=Path)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--cpus", type=int, default=16, help="of a node (default: 16)")
    parser.add_argument("--gpus", type=int, default=0, help="of a node (default: 0)")
    parser.add_argument("--gpu-seconds", type=float, default=0.0, help="of both models for an image on one GPU")
    parser.add_argument("--gigabits", type=float, default=10.0, help="a second, of a node's network (default: 10)")
    parser.add_argument("--price", type=float, default=1.0, help="of a node, an hour (default: 1)")
    parser.add_argument("--driver-ms", type=float, default=DRIVER_MS, help=f"of a shard (default: {DRIVER_MS:g})")
    parser.add_argument("--check", type=int, metavar="IMAGES", help="score so many on two local nodes as well")
    call = parser.parse_args()
    if call.gpus and not call.gpu_seconds:
        parser.error("--gpus needs --gpu-seconds, as measured on such a GPU")
    costs = Costs(**json.loads(call.costs.read_text()))
    parts = (call.nodes, call.cpus, call.gpus, call.gigabits, call.price, call.gpu_seconds, call.driver_ms / 1000)
    cluster = Cluster(*parts)
    print(table(costs, cluster))
    if not call.check:
        return 0
    seconds = measured(call.check)
    expected = predict(call.check, costs, replace(cluster, nodes=2, cpus=1, gpus=0), ROWS_PER_SHARD).seconds
    met = abs(seconds / expected - 1) <= OFF_BY
    times = f"{seconds:.0f} s, predicted {expected:.0f} s"
    print(f"\n{call.check} images on two local nodes: {times}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
