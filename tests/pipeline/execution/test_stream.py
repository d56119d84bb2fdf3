from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, WorkerCrashedError

from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.console.logs import Progress
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution import stream
from medfocus.pipeline.execution.actor import ENVIRONMENT
from medfocus.pipeline.execution.stream import RunSummary, _actors, run_shards

PLAN = plan_resources([{"CPU": 2}])
SHARDS = [ShardEntry(f"shard-{name}", 10, 100, name) for name in "abc"]


def finished(shard: str, quarantined: int = 0) -> dict[str, Any]:
    counts = {"rows": 10, "written": 10 - quarantined, "quarantined": quarantined}
    return {"shard": shard, "failure": "", "permanent": False, **counts}


def failed(shard: str, *, permanent: bool = False) -> dict[str, Any]:
    return {"shard": shard, "failure": f"{shard} is slow", "permanent": permanent}


class Cluster:
    """Stands for Ray: gives each pass over shards its results, and notes the passes and the waits between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, results: Callable[[int, list[str]], Iterator[dict[str, Any]]]):
        self.results = results
        self.passes: list[list[str]] = []
        self.waits: list[float] = []
        self.progress = Progress("score", 30, 0, lambda _: None)
        monkeypatch.setattr(stream, "_stream", self.stream)
        monkeypatch.setattr(stream.time, "sleep", self.waits.append)
        monkeypatch.setattr(stream.random, "uniform", lambda low, high: (low + high) / 2)

    def stream(self, shards: Sequence[ShardEntry], job: Any, plan: Any) -> Iterator[dict[str, Any]]:
        self.passes.append([shard.sha256 for shard in shards])
        return self.results(len(self.passes), self.passes[-1])

    def run(self, most_quarantined: float | None = None) -> RunSummary:
        return run_shards(SHARDS, SimpleNamespace(), PLAN, self.progress, most_quarantined)  # type: ignore[arg-type]


def test_a_transient_failure_is_retried_after_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def results(number: int, shards: list[str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            yield failed(shard) if shard == "b" and number < 3 else finished(shard, quarantined=1)

    cluster = Cluster(monkeypatch, results)
    assert cluster.run() == RunSummary(written=27, retried=2)
    assert cluster.passes == [["a", "b", "c"], ["b"], ["b"]] and cluster.waits == [2.0, 4.0]
    assert (cluster.progress.done, cluster.progress.quarantined) == (30, 3)


def test_a_shard_is_tried_four_times_and_a_permanent_failure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def results(number: int, shards: list[str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            yield finished(shard) if shard == "b" else failed(shard, permanent=shard == "c")

    cluster = Cluster(monkeypatch, results)
    with pytest.raises(MedFocusError, match=r"^a is slow \(2 of 3 shards could not be finished, the others are; the"):
        cluster.run()
    assert cluster.passes == [["a", "b", "c"], ["a"], ["a"], ["a"]] and cluster.waits == [2.0, 4.0, 8.0]


def test_a_lost_process_uses_up_no_try_of_other_shards_while_some_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six losses, each after one shard of many: more than the tries of a shard."""
    many = [ShardEntry(f"shard-{number}", 10, 100, str(number)) for number in range(7)]

    def results(number: int, shards: list[str]) -> Iterator[dict[str, Any]]:
        yield finished(shards[0])
        if len(shards) > 1:
            raise WorkerCrashedError()

    cluster = Cluster(monkeypatch, results)
    summary = run_shards(many, SimpleNamespace(), PLAN, cluster.progress)  # type: ignore[arg-type]
    assert summary.written == 70 and not summary.failures and len(cluster.passes) == 7
    assert set(cluster.waits) == {2.0}


def test_losses_without_any_finished_shard_end_the_run_with_their_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def results(number: int, shards: list[str]) -> Iterator[dict[str, Any]]:
        raise WorkerCrashedError()
        yield

    cluster = Cluster(monkeypatch, results)
    with pytest.raises(MedFocusError, match=r"^a worker process died, .* \(3 of 3 shards could not be finished"):
        cluster.run()
    assert cluster.passes == [["a", "b", "c"]] * 4


def test_rows_that_do_not_arrive_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    def results(number: int, shards: list[str]) -> Iterator[dict[str, Any]]:
        yield from (finished(shard) for shard in shards if (number, shard) != (1, "b"))

    cluster = Cluster(monkeypatch, results)
    assert cluster.run() == RunSummary(written=30, retried=1)
    assert cluster.passes == [["a", "b", "c"], ["b"]]


class StartError(ActorDiedError):
    """What Ray raises when an actor cannot begin."""

    actor_init_failed = True

    def __str__(self) -> str:
        return str(self.args[0])


@pytest.mark.parametrize(
    ("message", "error", "passes"),
    [("ValueError: no weights", StartError, 1), ("CUDA error: uncorrectable ECC error", MedFocusError, 4)],
)
def test_an_actor_that_cannot_start_ends_the_run_unless_its_device_is_broken(
    monkeypatch: pytest.MonkeyPatch, message: str, error: type[Exception], passes: int
) -> None:
    def results(number: int, shards: list[str]) -> Iterator[dict[str, Any]]:
        failure = StartError()
        failure.args = (message,)
        raise failure
        yield

    cluster = Cluster(monkeypatch, results)
    with pytest.raises(error):
        cluster.run()
    assert len(cluster.passes) == passes


def quarantining(monkeypatch: pytest.MonkeyPatch, quarantined: int, rows: int) -> Cluster:
    """A run whose first shard ends with so many of its rows in quarantine."""
    first = {**finished("a"), "rows": rows, "written": rows - quarantined, "quarantined": quarantined}
    return Cluster(monkeypatch, lambda number, shards: iter([first, finished("b"), finished("c")]))


@pytest.mark.parametrize(
    ("quarantined", "rows", "allowed"), [(31, 31, 0.0), (32, 32, 0.9), (70, 1000, 0.05), (5, 9, 0.5), (64, 64, None)]
)
def test_a_share_in_quarantine_that_chance_explains_lets_a_run_go_on(
    monkeypatch: pytest.MonkeyPatch, quarantined: int, rows: int, allowed: float | None
) -> None:
    summary = quarantining(monkeypatch, quarantined, rows).run(allowed)
    assert summary.written == rows - quarantined + 20


@pytest.mark.parametrize(("quarantined", "rows", "allowed"), [(32, 200, 0.0), (64, 64, 0.5), (120, 1000, 0.05)])
def test_more_in_quarantine_than_chance_explains_ends_a_run(
    monkeypatch: pytest.MonkeyPatch, quarantined: int, rows: int, allowed: float
) -> None:
    cluster = quarantining(monkeypatch, quarantined, rows)
    with pytest.raises(MedFocusError, match=f"{quarantined} of the first {rows} rows are in quarantine"):
        cluster.run(allowed)
    assert cluster.progress.done == rows


PROCESS_ENVIRONMENT = Path("/proc/self/environ")


class Process:
    def first_environment(self) -> list[str]:
        return PROCESS_ENVIRONMENT.read_text().split("\0")


@pytest.mark.skipif(not PROCESS_ENVIRONMENT.exists(), reason="the system does not show it")
def test_an_actors_process_begins_with_its_environment(ray_session: None) -> None:
    """What is set once a process runs comes too late for the C library."""
    options = _actors(PLAN, shards=1)
    del options["compute"]  # Ray Data's own
    actor = ray.remote(Process).options(**options).remote()
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(ray.get(actor.first_environment.remote()))
