"""The resource plan: how many tasks and actors a stage gets, and what share of a machine each takes.

Pool sizes are pinned from what the cluster has when a run starts; pools that scale themselves were seen to stay
at one GPU actor or to starve the stages behind them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What a stage takes: so many processes at once (0: as many as fit), each with these CPUs, GPUs and threads."""

    processes: int
    cpus: float
    gpus: float
    threads: int


@dataclass(frozen=True)
class ResourcePlan:
    """Shares of the stages that stream an archive."""

    decode: Share
    models: Share

    @property
    def device(self) -> str:
        """Where the models of the actors run."""
        return "cuda" if self.models.gpus else "cpu"


def plan_resources(resources: Mapping[str, float]) -> ResourcePlan:
    """The plan for a cluster.

    An actor holds SAM2 (nearly all of the cost) and CLIP. With GPUs, each is shared by two actors: while one chooses
    regions on its CPU the other computes; the CPUs left decode. Without, each CPU has an actor of one thread: more
    threads in one actor wait for each other, and for the threads of the others. Together they take half of the CPUs,
    which decode in what the actors leave idle; and should a node go, its actors find room on others.

    Args:
        resources: as ``ray.cluster_resources()`` gives them; ``CPU`` and ``GPU`` are read.

    Raises:
        ValueError: the cluster has no CPU.
    """
    cpus, gpus = float(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if cpus < 1:
        raise ValueError(f"the cluster has {cpus:g} CPUs; start a node with at least one")
    if gpus:
        # Half a CPU an actor keeps one GPU fed from as little as two CPUs; the rest decodes.
        return ResourcePlan(
            decode=Share(0, min(1.0, cpus / 4), 0, 1),
            models=Share(2 * gpus, min(0.5, cpus / (8 * gpus)), 0.5, 1),
        )
    small = min(1.0, cpus / 2)  # a machine of one CPU gives each stage half of the shares of two
    return ResourcePlan(
        # No more than it takes to keep up: each is a worker that takes some of a CPU from the actors also while it
        # idles. And another share of a CPU than theirs: Ray Data would join what takes the same, and decode in the
        # actors.
        decode=Share(math.ceil(cpus / 4), 0.25 * small, 0, 1),
        models=Share(int(cpus), 0.5 * small, 0, 1),
    )


def training_share(resources: Mapping[str, float], workers: int) -> Share:
    """What each of ``workers`` training processes takes; half of the CPUs stay with the data that feeds them."""
    cpus, gpus = float(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    share = min(1.0, cpus / 2 / workers) if not gpus else min(1.0, cpus / 4 / workers)
    return Share(workers, share, 1.0 if gpus >= workers else 0.0, max(1, int(cpus / workers)))
