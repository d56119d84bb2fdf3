"""Finds the row that makes a stage fail, so that it fails alone.

A stage works on a shard in groups of rows. A group that fails is halved until the row is found.

A journal, an actor beside the driver, holds which rows each worker has in hand. When a worker has died, the next one
finds its rows there, and takes each of them alone. A row that was in hand alone at two deaths is given up.

An accelerator that fails stays broken for its process: every later row would fail too. The process ends, with its rows
in the journal, and the next one takes them.
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
from medfocus.pipeline.execution.block import FAILURE, give_up
from medfocus.stages.batch import Batch, fail, well, writable

# Rows that are worked on at once: all of them are looked at one by one if their worker dies.
GROUP = 32
# Deaths of its worker, with a row alone in hand, after which the row is given up.
_DEATHS = 2
# Transient errors, not of a row that is worked on: the shard is tried again as a whole.
_TRANSIENT = (OSError, MedFocusError)
# Seconds that a process whose device has failed waits for the journal to take note.
_PATIENCE = 30
Call = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Isolation:
    """A stage's work, kept apart from the rows that would stop it.

    Args:
        stage: name of the stage, as quarantine has it.
        journal: of the run.
    """

    stage: str
    journal: Any

    def __call__(self, call: Call, batch: Batch) -> Batch:
        """What ``call`` makes of the rows of a shard.

        A row for which it fails, or dies, has failed at the stage. Where storage or memory fails, the shard has: its
        ``failure`` says why and none of its rows are worked on any further.

        Raises:
            AccessError: storage may not be used at all; the run ends.
        """
        batch, shard = writable(batch), str(batch["shard"][0])
        if batch[FAILURE][0]:
            return call(batch)  # its rows are passed by
        try:
            return self._by_groups(call, batch, shard)
        except AccessError:
            raise
        except Exception as error:
            return call(give_up(batch, self.stage, error))
        finally:  # which a death does not come to
            self.journal.close.remote(shard, self.stage)  # not waited for: no other worker asks for the shard now

    def _by_groups(self, call: Call, batch: Batch, shard: str) -> Batch:
        at_risk = well(batch)
        at_once = at_risk[at_risk < GROUP].tolist()
        suspects = ray.get(self.journal.open.remote(shard, self.stage, at_once, _this_worker()))
        for row, deaths in suspects.items():
            if deaths >= _DEATHS:
                message = f"the process died each of {deaths} times that it had this row alone"
                fail(batch, row, self.stage, "WorkerDied", message)
        others = np.setdiff1d(np.arange(len(batch["image_id"])), list(suspects))
        groups = [others[start : start + GROUP] for start in range(0, len(others), GROUP)]
        groups += [np.array([row]) for row in sorted(suspects)]
        done = [
            part
            for number, rows in enumerate(groups)
            for part in self._attempt(call, batch, shard, rows, taken=number == 0 and not suspects)
        ]
        return _join([part for _, part in done], np.concatenate([rows for rows, _ in done]))

    def _attempt(
        self, call: Call, batch: Batch, shard: str, rows: np.ndarray, *, taken: bool = False
    ) -> list[tuple[np.ndarray, Batch]]:
        """What is made of some rows, in as few parts as it could be made in; ``taken`` are in hand already."""
        # Neighbours are viewed, not copied: pixels are large.
        chosen = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
        part = writable({name: column[chosen] for name, column in batch.items()})
        at_risk = rows[well(part)].tolist()
        if at_risk and not taken:
            ray.get(self.journal.take.remote(shard, self.stage, at_risk, _this_worker()))
        try:
            return [(rows, call(part))]
        except Exception as error:
            if is_device_error(error):
                self._leave(error)
            if len(rows) > 1:
                halves = np.array_split(rows, 2)
                return [entry for half in halves for entry in self._attempt(call, batch, shard, half)]
            if isinstance(error, _TRANSIENT) or is_memory_error(error):
                raise
            fail(part, 0, self.stage, type(error).__name__, f"the stage failed for this image ({type(error).__name__})")
            return [(rows, call(part))]

    def _leave(self, error: Exception) -> None:
        """End this process. Ray starts another one, which finds in the journal what was in hand."""
        try:
            ray.get(self.journal.note_device_error.remote(reason(error)), timeout=_PATIENCE)
        finally:
            os._exit(1)


def _this_worker() -> str:
    return str(ray.get_runtime_context().get_worker_id())


def _join(parts: list[Batch], rows: np.ndarray) -> Batch:
    """Parts of a batch as one, in the order of its rows."""
    if len(parts) == 1:
        return parts[0]
    order = slice(None) if np.all(np.diff(rows) > 0) else np.argsort(rows)
    return {name: _stack([part[name] for part in parts])[order] for name in parts[0]}


def _stack(columns: list[np.ndarray]) -> np.ndarray:
    """Columns on each other; where some images are grey, [..., 1], and others coloured, these are spread."""
    if columns[0].ndim == 1:
        return np.concatenate(columns)
    shape = np.max([column.shape[1:] for column in columns], axis=0)
    return np.concatenate([np.broadcast_to(column, (len(column), *shape)) for column in columns])
