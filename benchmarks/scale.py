"""Predicted hours and price of scoring 1, 10 and 100 million images on a cluster.

Usage: ``python -m benchmarks.scale COSTS [--nodes 50] [--cpus 16] [--gpus 0 --gpu-seconds S] [--check IMAGES]``

COSTS is the file that ``python -m benchmarks.stages --costs COSTS`` writes; the driver's time is from
``python -m benchmarks.control``. The plan of actors is the one that ``score`` makes on such a cluster. The slowest part
sets the pace: GPUs, CPUs, network or driver. Prints a table with one row for each archive size. ``--check`` also scores
phantoms on a local cluster of two nodes. Its target is a time within 25 % of the prediction; the last line says ``met``
or ``MISSED``, and the exit code is 1 where it is missed.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ray.cluster_utils import Cluster as LocalCluster

from benchmarks.stages import StageCosts
from benchmarks.throughput.workload import ROWS_PER_SHARD, prepare
from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.config import PackSection
from medfocus.pipeline.execution.stream import _SHARDS_PER_ACTOR
from tests.faults.injection import ScoreCommand, wait_for_result

MILLION = 1_000_000
# Largest relative error of a prediction.
MAX_ERROR = 0.25
# What ``python -m benchmarks.control`` measured on two cores, which the driver shares with tasks: an upper bound.
DRIVER_MS = 32.0


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind.

    Args:
        nodes: number of nodes.
        cpus: CPUs of a node.
        gpus: GPUs of a node.
        gigabits: network bandwidth of a node, Gbit/s.
        price: price of a node for an hour.
        gpu_seconds: seconds that both models take for an image on one GPU.
        driver: seconds that the driver takes for a shard.
    """

    nodes: int
    cpus: int
    gpus: int
    gigabits: float
    price: float
    gpu_seconds: float
    driver: float


@dataclass(frozen=True)
class Prediction:
    """Predicted time of a run.

    Args:
        rates: images a second that each part of the cluster can process.
        seconds: duration of the run.
    """

    rates: dict[str, float]
    seconds: float

    @property
    def slowest(self) -> str:
        """Name of the part that limits the speed."""
        return min(self.rates, key=lambda name: self.rates[name])


def predict(images: int, costs: StageCosts, cluster: Cluster, rows_per_shard: int) -> Prediction:
    """Predict the time to score an archive.

    Args:
        images: number of images.
        costs: measured CPU seconds and bytes an image.
        cluster: where the run takes place.
        rows_per_shard: number of images in a shard.
    """
    resources = {"CPU": float(cluster.nodes * cluster.cpus), "GPU": float(cluster.nodes * cluster.gpus)}
    cpu_seconds = sum(costs.cpu.values())
    # An upper bound: no two stages of an image share a node.
    bytes_moved = costs.image_bytes + costs.row_bytes + costs.object_store_bytes
    rates = {
        "network": cluster.nodes * cluster.gigabits * 1e9 / 8 / bytes_moved,
        "driver": rows_per_shard / cluster.driver,
    }
    if cluster.gpus:
        rates["GPUs"] = resources["GPU"] / cluster.gpu_seconds
        cpu_seconds = costs.cpu["decode"] + costs.cpu["commit"]
        model_seconds = cluster.gpu_seconds
    else:
        model_seconds = costs.cpu["segment"] + costs.cpu["embed"]
    rates["CPUs"] = resources["CPU"] / cpu_seconds
    shards = -(-images // rows_per_shard)
    plans = -(-shards // (_SHARDS_PER_ACTOR * plan_resources([resources]).models.processes))
    # Each plan of Ray Data loads the models, and no other work fills the CPUs while its last shards are processed.
    overhead = plans * (costs.start + rows_per_shard * model_seconds)
    return Prediction(rates, overhead + images / min(rates.values()))


def table(costs: StageCosts, cluster: Cluster) -> str:
    """The predictions for 1, 10 and 100 million images, as Markdown."""
    lines = ["| images | hours | price | slowest part | its images/s |", "|---|---|---|---|---|"]
    for images in (MILLION, 10 * MILLION, 100 * MILLION):
        prediction = predict(images, costs, cluster, PackSection().rows_per_shard)
        hours = prediction.seconds / 3600
        price = hours * cluster.nodes * cluster.price
        rate = prediction.rates[prediction.slowest]
        lines.append(f"| {images:,} | {hours:.1f} | {price:,.0f} | {prediction.slowest} | {rate:.1f} |")
    return "\n".join(lines)


def measure_two_nodes(count: int) -> float:
    """Seconds that ``score`` takes for ``count`` phantoms on a cluster of two local nodes with one CPU each."""
    with tempfile.TemporaryDirectory() as name:
        workload = prepare(Path(name) / "archive", count, [])
        cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            settings = [*workload.settings, f"cluster.address={cluster.address}"]
            out = str(workload.folder / "out")
            command = ScoreCommand(str(workload.shards), out, str(workload.model), settings)
            return float(wait_for_result(command.start())["seconds"])
        finally:
            cluster.shutdown()


def check(count: int, costs: StageCosts, cluster: Cluster) -> bool:
    """Print measured and predicted seconds for two local nodes; whether they agree."""
    seconds = measure_two_nodes(count)
    expected = predict(count, costs, replace(cluster, nodes=2, cpus=1, gpus=0), ROWS_PER_SHARD).seconds
    met = abs(seconds / expected - 1) <= MAX_ERROR
    times = f"{seconds:.0f} s, predicted {expected:.0f} s"
    print(f"\n{count} images on two local nodes: {times}: {'met' if met else 'MISSED'}")
    return met


def parse_arguments() -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("costs", type=Path, help="JSON file that benchmarks.stages --costs wrote")
    parser.add_argument("--nodes", type=int, default=50, help="number of nodes (default: 50)")
    parser.add_argument("--cpus", type=int, default=16, help="CPUs of a node (default: 16)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of a node (default: 0)")
    parser.add_argument("--gpu-seconds", type=float, default=0.0, help="seconds of both models for an image on one GPU")
    parser.add_argument("--gigabits", type=float, default=10.0, help="network of a node, Gbit/s (default: 10)")
    parser.add_argument("--price", type=float, default=1.0, help="price of a node for an hour (default: 1)")
    parser.add_argument(
        "--driver-ms", type=float, default=DRIVER_MS, help=f"milliseconds of the driver for a shard ({DRIVER_MS:g})"
    )
    parser.add_argument("--check", type=int, metavar="IMAGES", help="also score so many images on two local nodes")
    call = parser.parse_args()
    if call.gpus and not call.gpu_seconds:
        parser.error("--gpus needs --gpu-seconds, as measured on such a GPU")
    return call


def main() -> int:
    """Print the table, and the check on request; 1 where the check misses its target."""
    call = parse_arguments()
    costs = StageCosts(**json.loads(call.costs.read_text()))
    cluster = Cluster(
        nodes=call.nodes,
        cpus=call.cpus,
        gpus=call.gpus,
        gigabits=call.gigabits,
        price=call.price,
        gpu_seconds=call.gpu_seconds,
        driver=call.driver_ms / 1000,
    )
    print(table(costs, cluster))
    return 0 if not call.check or check(call.check, costs, cluster) else 1


if __name__ == "__main__":
    sys.exit(main())
