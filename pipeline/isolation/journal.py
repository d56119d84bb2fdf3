"""The journal: which rows each worker has in flight, so that a poison row, which kills its worker, is found."""

from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Journal:
    """Rows that workers have in flight, and suspects of the death of a worker, by shard and stage."""

    def __init__(self) -> None:
        self._in_flight: dict[tuple[str, str], tuple[str, list[int]]] = {}
        self._suspects: dict[tuple[str, str], Counter[int]] = {}
        self._device_errors: list[str] = []

    def open(self, shard: str, stage: str, rows: list[int], worker: str) -> dict[int, int]:
        """Note that a worker begins a stage of a shard, and return the suspects among its rows.

        Ray may make a call twice: rows that the worker itself has in flight already are no sign of a death.

        Args:
            shard: key of the shard.
            stage: name of the stage.
            rows: rows that the worker begins with; they are in flight from now on if there are no suspects.
            worker: id of the worker.

        Returns:
            Rows that were in flight when another worker died, each with the number of deaths at which it was in flight
            alone.
        """
        holder, held_rows = self._in_flight.pop((shard, stage), (worker, []))
        suspects = self._suspects.setdefault((shard, stage), Counter())
        if holder != worker:
            suspects.update({row: int(len(held_rows) == 1) for row in held_rows})
        if not suspects:
            self.take(shard, stage, rows, worker)
        return dict(suspects)

    def take(self, shard: str, stage: str, rows: list[int], worker: str) -> None:
        """Note the rows that a worker has in flight, in place of those that it had before."""
        self._in_flight[shard, stage] = worker, rows

    def note_device_error(self, reason: str) -> None:
        """Note that a worker ends because its device has failed. The rows that it has in flight stay noted."""
        self._device_errors.append(reason)

    def device_errors(self) -> list[str]:
        """Reasons of all workers that ended because their device had failed."""
        return self._device_errors

    def close(self, shard: str, stage: str) -> None:
        """Forget a shard that has passed a stage."""
        self._in_flight.pop((shard, stage), None)
        self._suspects.pop((shard, stage), None)


def open_journal() -> Any:
    """Start a journal as an actor on the node of the driver; it lives as long as the driver.

    Ray repeats a call that does not reach the actor, so each call may be made twice. If the actor dies, an empty one
    replaces it. The deaths that it knew of are lost: finding the poison row then takes more deaths, and costs no row.
    """
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Journal).options(scheduling_strategy=driver_node, **options).remote()
