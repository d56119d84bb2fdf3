"""The resource plan: how many tasks and actors a stage gets, and what share of a machine each takes.

A plan is for what the cluster may become, not only for the nodes that are there. Each actor that has no room yet is a
demand that Ray's autoscaler sees, so a pool of the planned size is what makes the nodes come. The size is fixed, since
actor pools that scale themselves stayed at one GPU actor, or starved the stages behind them. Only where nobody says
what may come does the pool grow with the GPUs that join.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medfocus.cluster.errors import ClusterError

# What a node that is still to come is taken to have: CPUs for each of its GPUs.
_CPUS_PER_GPU = 2.0
# Shares of a machine are compared with this tolerance.
_EPSILON = 1e-9


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

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one process, by Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def room(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Number of processes for which empty nodes have room.

        Args:
            nodes: resources of each node.
        """
        return sum(
            min(int(node.get(name, 0) / amount + _EPSILON) for name, amount in self.bundle.items()) for node in nodes
        )

    @property
    def amounts(self) -> str:
        """Resources of one process, in words."""
        return " and ".join(f"{amount:.3g} {name}s" for name, amount in self.bundle.items())

    def __str__(self) -> str:
        return f"{self.processes or 'as many as fit'} of {self.amounts}"


@dataclass(frozen=True)
class Demand:
    """What a run asks of a cluster.

    Args:
        gpus: number of GPUs that the run shall use; None takes what is there or may come.
        workers: number of actors that hold the models; None as for ``gpus``. One of the two is given at most.
        device: device of the models: ``auto``, ``cpu`` or ``cuda``. ``auto`` takes GPUs where there are some.
    """

    gpus: int | None = None
    workers: int | None = None
    device: str = "auto"

    @property
    def explicit(self) -> bool:
        """Whether it names a number, which the autoscaler is asked for."""
        return self.gpus is not None or self.workers is not None


@dataclass(frozen=True)
class ResourcePlan:
    """Shares of the stages that stream an archive.

    Args:
        decode: share of the tasks that read and decode shards.
        models: share of the actors that hold the models.
        device: device of the models: ``cuda`` or ``cpu``.
        limits: most ``cpu`` and ``gpu`` that all processes together take, so that Ray Data asks the autoscaler for no
            more; None where nobody says what may come, and GPUs that join get actors beyond ``models.processes``.
    """

    decode: Share
    models: Share
    device: str
    limits: Mapping[str, float] | None

    @property
    def grows(self) -> bool:
        """Whether GPUs that join later get actors beyond ``models.processes``."""
        return self.limits is None

    def __str__(self) -> str:
        more = ", and more on GPUs that join" if self.grows else ""
        return f"decode in tasks: {self.decode}; models on {self.device} in actors: {self.models}{more}"


def plan_resources(
    nodes: Sequence[Mapping[str, float]], demand: Demand | None = None, reach: Sequence[Mapping[str, float]] = ()
) -> ResourcePlan:
    """The resource plan for a cluster.

    An actor holds SAM2, which is nearly all of the cost, and CLIP. Two actors share a GPU: while one chooses regions on
    its CPU, the other computes. The other CPUs decode. Without GPUs, each CPU has one actor of one thread: more threads
    in an actor wait for each other, and for the threads of other actors. These actors claim half of the CPUs. Decoding
    runs in the time that they are idle, and if a node is lost, its actors find room on other nodes.

    Args:
        nodes: resources of each node that is there, by Ray's names; ``CPU`` and ``GPU`` are read.
        demand: what the run asks for; None asks for what is there or may come.
        reach: resources of each node that the autoscaler can start beside them.

    Raises:
        ClusterError: the cluster has nothing to run the models on, and the demand does not say what shall come.
    """
    demand = demand or Demand()
    machines = [*nodes, *reach]
    cpus, gpus = _total(machines, "CPU"), int(_total(machines, "GPU"))
    if demand.gpus is not None:
        return _gpu_plan(machines, 2 * demand.gpus, demand)
    if demand.device == "cuda" or (demand.device == "auto" and gpus):
        if not gpus and demand.workers is None:
            raise ClusterError(
                f"the cluster has no GPU ({describe(nodes)}) and cluster.device=cuda asks for one; start a node with a"
                " GPU, or set cluster.gpus to the number that the autoscaler shall start"
            )
        return _gpu_plan(machines, demand.workers or 2 * gpus, demand, grows=not (demand.explicit or reach))
    if cpus < 1 and demand.workers is None:
        raise ClusterError(
            f"the cluster has nothing to run the models on ({describe(nodes)}); start a node, or set cluster.gpus or"
            " cluster.workers to what the autoscaler shall start"
        )
    return _cpu_plan(cpus, demand.workers)


def _gpu_plan(
    machines: Sequence[Mapping[str, float]], actors: int, demand: Demand, *, grows: bool = False
) -> ResourcePlan:
    ratio = _cpus_per_gpu(machines)
    # Half a CPU for each actor keeps one GPU busy with only two CPUs. The other CPUs decode.
    models = Share(actors, min(0.5, ratio / 8), 0.5, 1)
    device = "cpu" if demand.device == "cpu" else "cuda"
    task_cpus = min(1.0, ratio / 4)
    if grows:
        return ResourcePlan(Share(0, task_cpus, 0, 1), models, device, None)
    gpus = math.ceil(actors / 2)
    cpus = _total((node for node in machines if not node.get("GPU")), "CPU") + gpus * ratio
    tasks = max(1, int((cpus - actors * models.cpus) / task_cpus + _EPSILON))
    # They claim half of the CPUs that they use. When a node is lost, Ray reads its shards again beside them; without
    # room for that, the autoscaler would start a node for it. Ray Data rounds the number of tasks that it asks for up.
    decode = Share(tasks, task_cpus / 2, 0, 1)
    return ResourcePlan(decode, models, device, {"cpu": cpus - decode.cpus, "gpu": gpus})


def _cpu_plan(cpus: float, workers: int | None) -> ResourcePlan:
    actors = workers or int(cpus)
    scale = min(1.0, cpus / 2) if cpus >= 1 else 1.0  # on one CPU each share is half of that on two CPUs
    return ResourcePlan(
        # Only as many tasks as keep up with the actors: each is a worker that takes some CPU time even when idle. The
        # share of a CPU differs from that of the actors: Ray Data fuses stages of equal shares, and would decode in
        # the actors.
        decode=Share(math.ceil(actors / 4), 0.25 * scale, 0, 1),
        models=Share(actors, 0.5 * scale, 0, 1),
        device="cpu",
        limits={"cpu": max(cpus, actors), "gpu": 0},
    )


def training_share(
    nodes: Sequence[Mapping[str, float]],
    workers: int,
    demand: Demand | None = None,
    reach: Sequence[Mapping[str, float]] = (),
) -> Share:
    """The share of the training processes; at least half of the CPUs are left to the tasks that read features.

    Args:
        nodes: resources of each node that is there, by Ray's names; ``CPU`` and ``GPU`` are read.
        workers: number of training processes. Each has a GPU if there are enough, or enough may come.
        demand: what the run asks for; None asks for what is there or may come.
        reach: resources of each node that the autoscaler can start beside them.
    """
    demand = demand or Demand()
    machines = [*nodes, *reach]
    gpus = demand.gpus if demand.gpus is not None else int(_total(machines, "GPU"))
    if demand.device == "cpu" and demand.gpus is None:
        gpus = 0
    cpus = _total(machines, "CPU") or (gpus * _CPUS_PER_GPU if gpus else float(demand.workers or 0))
    share = min(1.0, cpus / 2 / workers) if not gpus else min(1.0, cpus / 4 / workers)
    use_gpu = gpus >= workers and demand.device != "cpu"
    return Share(workers, share, 1.0 if use_gpu else 0.0, max(1, int(cpus / workers)))


def describe(nodes: Sequence[Mapping[str, float]]) -> str:
    """The nodes in words: their number, and the CPUs and GPUs of all."""
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    return f"{count} with {_total(nodes, 'CPU'):g} CPUs and {_total(nodes, 'GPU'):g} GPUs"


def _total(nodes: Iterable[Mapping[str, float]], name: str) -> float:
    return float(sum(node.get(name, 0) for node in nodes))


def _cpus_per_gpu(machines: Iterable[Mapping[str, float]]) -> float:
    """The fewest CPUs for a GPU of the nodes that have both, so that the actors fit each of them."""
    ratios = [node.get("CPU", 0) / node["GPU"] for node in machines if node.get("GPU") and node.get("CPU")]
    return min(ratios, default=_CPUS_PER_GPU)
