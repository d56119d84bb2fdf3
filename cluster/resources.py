"""The resource plan: how many tasks and actors a stage gets, and what share of a machine each takes.

Pool sizes are pinned from what the cluster has when a run starts; pools that scale themselves were seen to stay
at one GPU actor or to starve the stages behind them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What a stage takes: ``actors`` processes (0: tasks, as many as fit), each with these CPUs, GPUs and threads."""

    actors: int
    cpus: float
    gpus: float
    threads: int


@dataclass(frozen=True)
class Plan:
    """Shares of the stages that stream an archive."""

    decode: Share
    segment: Share
    embed: Share
    commit: Share

    @property
    def device(self) -> str:
        """Where the models of the actors run."""
        return "cuda" if self.segment.gpus else "cpu"


def plan(resources: Mapping[str, float]) -> Plan:
    """The plan for a cluster.

    With GPUs, each holds one SAM2 actor (nearly all of the cost) and one CLIP actor, and the CPUs decode. Without,
    about three quarters of the CPUs go to SAM2, a thread each; on fewer than four CPUs one SAM2 actor uses all of
    them, and decoding and CLIP run in what it leaves idle.

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
        return Plan(
            decode=Share(0, min(1.0, cpus / 4), 0, 1),
            segment=Share(gpus, min(0.5, cpus / (8 * gpus)), 0.7, 1),
            embed=Share(gpus, min(0.5, cpus / (8 * gpus)), 0.3, 1),
            commit=Share(0, min(0.25, cpus / 8), 0, 1),
        )
    small = min(1.0, cpus / 2)  # a machine of one CPU gives each stage half of the shares of two
    segment_actors = max(1, int(cpus * 0.75)) if cpus >= 4 else 1
    return Plan(
        decode=Share(0, 0.5 * small, 0, 1),
        segment=Share(segment_actors, 1.0 * small, 0, 1 if cpus >= 4 else int(cpus)),
        embed=Share(max(1, int(cpus / 8)), 0.25 * small, 0, 1),
        commit=Share(0, 0.2 * small, 0, 1),
    )


def training_share(resources: Mapping[str, float], workers: int) -> Share:
    """What each of ``workers`` training processes takes; half of the CPUs stay with the data that feeds them."""
    cpus, gpus = float(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    share = min(1.0, cpus / 2 / workers) if not gpus else min(1.0, cpus / 4 / workers)
    return Share(workers, share, 1.0 if gpus >= workers else 0.0, max(1, int(cpus / workers)))
