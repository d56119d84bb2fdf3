"""The resource plan: how many tasks and actors a stage gets, and what share of a machine each takes.

Pool sizes are fixed from what the cluster has when a run starts. Actor pools that scale themselves stayed at one GPU
actor, or starved the stages behind them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What a stage takes of a cluster.

    Args:
        processes: number of processes; 0 means as many as fit.
        cpus: CPUs of each process, which may be a fraction.
        gpus: GPUs of each process, which may be a fraction.
        threads: threads of each process.
    """

    processes: int
    cpus: float
    gpus: float
    threads: int


@dataclass(frozen=True)
class ResourcePlan:
    """Shares of the stages that stream an archive.

    Args:
        decode: share of the tasks that read and decode shards.
        models: share of the actors that hold the models.
    """

    decode: Share
    models: Share

    @property
    def device(self) -> str:
        """Device of the models: ``cuda`` or ``cpu``."""
        return "cuda" if self.models.gpus else "cpu"


def plan_resources(resources: Mapping[str, float]) -> ResourcePlan:
    """The resource plan for a cluster.

    An actor holds SAM2, which is nearly all of the cost, and CLIP. Two actors share a GPU: while one chooses regions on
    its CPU, the other computes. The other CPUs decode. Without GPUs, each CPU has one actor of one thread: more threads
    in an actor wait for each other, and for the threads of other actors. These actors claim half of the CPUs. Decoding
    runs in the time that they are idle, and if a node is lost, its actors find room on other nodes.

    Args:
        resources: resources of the cluster, as ``ray.cluster_resources()`` returns them; ``CPU`` and ``GPU`` are read.

    Raises:
        ValueError: the cluster has no CPU.
    """
    cpus, gpus = float(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if cpus < 1:
        raise ValueError(f"the cluster has {cpus:g} CPUs; start a node with at least one")
    if gpus:
        # Half a CPU for each actor keeps one GPU busy with only two CPUs. The other CPUs decode.
        return ResourcePlan(
            decode=Share(0, min(1.0, cpus / 4), 0, 1),
            models=Share(2 * gpus, min(0.5, cpus / (8 * gpus)), 0.5, 1),
        )
    scale = min(1.0, cpus / 2)  # on one CPU each share is half of that on two CPUs
    return ResourcePlan(
        # Only as many tasks as keep up with the actors: each is a worker that takes some CPU time even when idle. The
        # share of a CPU differs from that of the actors: Ray Data fuses stages of equal shares, and would decode in
        # the actors.
        decode=Share(math.ceil(cpus / 4), 0.25 * scale, 0, 1),
        models=Share(int(cpus), 0.5 * scale, 0, 1),
    )


def training_share(resources: Mapping[str, float], workers: int) -> Share:
    """The share of the training processes; at least half of the CPUs are left to the tasks that read features.

    Args:
        resources: resources of the cluster, as ``ray.cluster_resources()`` returns them; ``CPU`` and ``GPU`` are read.
        workers: number of training processes. Each has a GPU if there are enough.
    """
    cpus, gpus = float(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    share = min(1.0, cpus / 2 / workers) if not gpus else min(1.0, cpus / 4 / workers)
    return Share(workers, share, 1.0 if gpus >= workers else 0.0, max(1, int(cpus / workers)))
