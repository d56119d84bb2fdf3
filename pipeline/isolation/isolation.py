"""Finds the row that makes a stage fail, so that this row fails alone.

A stage works on the rows of a shard in groups. What happens next depends on how it fails:

- The stage raises an error. Bisection finds the row: the group is halved, and each half is tried again, until one row
  is left. If the error is permanent, that is, of the row itself, the row fails and goes to quarantine. If the error is
  transient, as of storage or of short memory, no row is at fault: the shard fails, and the stream tries it again later.
- The stage kills its worker. No code can catch this, so a journal, an actor beside the driver, holds the rows that each
  worker has in flight. The worker that Ray starts next for the shard finds the rows of the dead worker in the journal,
  and works on each of them alone. A row that was in flight alone at two deaths is a poison row and fails.
- The accelerator fails. It stays broken for its process, so every later row would fail too. The process ends itself
  while its rows are in the journal, and the next worker goes on as after a death.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from medfocus.cluster.devices import is_device_error, is_memory_error
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.data.storage import AccessError
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.isolation.failure import FAILURE, fail_shard
from medfocus.stages.batch import Batch, fail, well, writable

# Rows that a stage works on at once. If their worker dies, each of them is tried alone.
GROUP = 32
# A row that was in flight alone at so many deaths of its worker fails.
_MOST_DEATHS = 2
# Errors that are transient whatever row is in flight. Short memory is another one.
_TRANSIENT_ERRORS = (OSError, MedFocusError)
# Seconds that a process with a failed device waits until the journal has noted it.
_JOURNAL_TIMEOUT = 30
Stage = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Isolation:
    """Runs a stage so that a failing row costs no other row.

    Args:
        name: name of the stage, as it stands in quarantine.
        journal: handle of the run's journal (``open_journal``).
    """

    name: str
    journal: Any

    def __call__(self, stage: Stage, batch: Batch) -> Batch:
        """Run the stage on the rows of a shard.

        Args:
            stage: the stage; it passes over rows that have failed already.
            batch: rows of one shard.

        Returns:
            The rows after the stage. A row that makes the stage fail, or that kills its worker, has failed. If the
            error is transient, the shard has failed: all of its rows have, and ``failure`` says why.

        Raises:
            AccessError: storage may not be used at all; the run ends.
        """
        batch, shard = writable(batch), str(batch["shard"][0])
        if batch[FAILURE][0]:
            return stage(batch)  # adds the columns of the stage; all rows have failed
        try:
            return self._run_groups(stage, batch, shard)
        except AccessError:
            raise
        except Exception as error:
            return stage(fail_shard(batch, self.name, error))
        finally:  # a worker that dies does not get here
            self.journal.close.remote(shard, self.name)  # not waited for: no other worker has the shard now

    def _run_groups(self, stage: Stage, batch: Batch, shard: str) -> Batch:
        """Run the stage on groups of rows, and on each suspect alone."""
        rows_to_process = well(batch)
        first_rows = rows_to_process[rows_to_process < GROUP].tolist()
        suspects = ray.get(self.journal.open.remote(shard, self.name, first_rows, _worker_id()))
        for row, deaths in suspects.items():
            if deaths >= _MOST_DEATHS:
                message = f"the process died each of {deaths} times that it had this row alone"
                fail(batch, row, self.name, "WorkerDied", message)
        others = np.setdiff1d(np.arange(len(batch["image_id"])), list(suspects))
        groups = [others[start : start + GROUP] for start in range(0, len(others), GROUP)]
        groups += [np.array([row]) for row in sorted(suspects)]
        parts = []
        for number, rows in enumerate(groups):
            noted = number == 0 and not suspects  # by ``journal.open``
            parts += self._bisect(stage, batch, shard, rows, noted=noted)
        return _join([part for _, part in parts], np.concatenate([rows for rows, _ in parts]))

    def _bisect(
        self, stage: Stage, batch: Batch, shard: str, rows: np.ndarray, *, noted: bool = False
    ) -> list[tuple[np.ndarray, Batch]]:
        """Run the stage on some rows, and on halves of them where it raises an error.

        Args:
            stage: the stage.
            batch: rows of one shard.
            shard: key of the shard.
            rows: int [n], sorted places of the rows in the batch.
            noted: the journal has these rows in flight already.

        Returns:
            Places of rows, and these rows after the stage, in as few parts as possible.
        """
        # Adjacent rows are a view, not a copy: pixels are large.
        place = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
        part = writable({name: column[place] for name, column in batch.items()})
        rows_to_process = rows[well(part)].tolist()
        if rows_to_process and not noted:
            ray.get(self.journal.take.remote(shard, self.name, rows_to_process, _worker_id()))
        try:
            return [(rows, stage(part))]
        except Exception as error:
            if is_device_error(error):
                self._end_process(error)
            if len(rows) > 1:
                halves = np.array_split(rows, 2)
                return [entry for half in halves for entry in self._bisect(stage, batch, shard, half)]
            if isinstance(error, _TRANSIENT_ERRORS) or is_memory_error(error):
                raise
            fail(part, 0, self.name, type(error).__name__, f"the stage failed for this image ({type(error).__name__})")
            return [(rows, stage(part))]

    def _end_process(self, error: Exception) -> None:
        """End this process. Ray starts another one, which finds the rows in flight in the journal."""
        try:
            ray.get(self.journal.note_device_error.remote(reason(error)), timeout=_JOURNAL_TIMEOUT)
        finally:
            os._exit(1)


def _worker_id() -> str:
    return str(ray.get_runtime_context().get_worker_id())


def _join(parts: list[Batch], rows: np.ndarray) -> Batch:
    """Parts of a batch as one batch, in the order of its rows."""
    if len(parts) == 1:
        return parts[0]
    order = slice(None) if np.all(np.diff(rows) > 0) else np.argsort(rows)
    return {name: _stack([part[name] for part in parts])[order] for name in parts[0]}


def _stack(columns: list[np.ndarray]) -> np.ndarray:
    """Columns one below the other; grey images, [..., 1], are broadcast where others are in colour, [..., 3]."""
    if columns[0].ndim == 1:
        return np.concatenate(columns)
    shape = np.max([column.shape[1:] for column in columns], axis=0)
    return np.concatenate([np.broadcast_to(column, (len(column), *shape)) for column in columns])
