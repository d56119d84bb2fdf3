"""The journal: which rows each worker has in hand, so that a row that kills its worker is found."""

from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Journal:
    """Rows that workers have in hand, by shard and stage."""

    def __init__(self) -> None:
        self._in_hand: dict[tuple[str, str], tuple[str, list[int]]] = {}
        self._suspects: dict[tuple[str, str], Counter[int]] = {}
        self._device_errors: list[str] = []

    def open(self, shard: str, stage: str, rows: list[int], worker: str) -> dict[int, int]:
        """A worker begins with a shard: rows that another died with, each with the deaths when it was alone.

        Where there are none it has ``rows`` in hand. What it has in hand itself is no death: the call was made twice.
        """
        holder, left = self._in_hand.pop((shard, stage), (worker, []))
        suspects = self._suspects.setdefault((shard, stage), Counter())
        if holder != worker:
            suspects.update({row: int(len(left) == 1) for row in left})
        if not suspects:
            self.take(shard, stage, rows, worker)
        return dict(suspects)

    def take(self, shard: str, stage: str, rows: list[int], worker: str) -> None:
        self._in_hand[shard, stage] = worker, rows

    def note_device_error(self, reason: str) -> None:
        """A worker ends because its device has failed; the rows that it has in hand stay noted."""
        self._device_errors.append(reason)

    def device_errors(self) -> list[str]:
        return self._device_errors

    def close(self, shard: str, stage: str) -> None:
        self._in_hand.pop((shard, stage), None)
        self._suspects.pop((shard, stage), None)


def open_journal() -> Any:
    """A journal in an actor on the driver's own node, which lives as long as the driver.

    A call that does not reach it is made again (each may be made twice), and if it dies it begins anew: what it knew of
    deaths is lost, which costs another death or two and no row.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Journal).options(scheduling_strategy=here, **options).remote()
