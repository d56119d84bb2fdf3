"""The one stream behind ``embed`` and ``score``: shards are read, decoded, segmented, embedded and committed.

A block is a shard: it passes each stage whole and is committed by itself, so that what is finished survives.
Rows are never dropped on the way; a row that fails carries its failure to the commit. A shard that cannot be finished
for a reason of the moment is tried again, after the others. Ray Data runs tasks again whose worker died, without end;
that a row does not kill for ever is for the journal to see to.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

from medfocus.cluster.resources import Plan, Share
from medfocus.pipeline import checkpoints
from medfocus.pipeline.actors import ENVIRONMENT, ModelActor, Work
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.isolation import FAILURE, Isolation, open_journal
from medfocus.pipeline.logs import Progress, log
from medfocus.pipeline.manifest import ShardEntry
from medfocus.pipeline.reading import read_and_decode

# How often a shard is tried, and the seconds before the first new try; each later one waits twice as long.
_TRIES, _PAUSE = 4, 2.0
# Shards in one plan of Ray Data, for each actor. Before a plan begins it makes a block of each, at a millisecond and
# 6 KiB in the driver; when it ends its models are loaded anew.
_SHARDS_PER_ACTOR = 500
# What Ray raises where a process, a node or an object is gone and its own new tries were in vain.
_GONE = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)


@dataclass
class Done:
    """What became of the shards of a run: rows written, shards tried again, and why some could not be finished."""

    written: int = 0
    retried: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def run_shards(shards: Sequence[ShardEntry], work: Work, plan: Plan, shown: Progress) -> Done:
    """Finish the shards, those that fail for a reason of the moment at a later try.

    Raises:
        MedFocusError: some shards could not be finished; all others are.
    """
    done, todo = Done(), list(shards)
    for attempt in range(_TRIES):
        if not todo:
            break
        if attempt:
            done.retried += len(todo)
            log.warning("%d shards are tried again; %s: %s", len(todo), todo[0].name, done.failures[todo[0].sha256])
            time.sleep(_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        again = _pass(todo, work, plan, shown, done)
        todo = [shard for shard in todo if shard.sha256 in again]
    failed = [shard for shard in shards if shard.sha256 in done.failures]
    if failed:
        raise MedFocusError(
            f"{done.failures[failed[0].sha256]} ({len(failed)} of {len(shards)} shards could not be finished, the"
            " others are; the same call goes on with them)"
        )
    return done


def _pass(todo: Sequence[ShardEntry], work: Work, plan: Plan, shown: Progress, done: Done) -> set[str]:
    """Try shards once; returns the digests of those that are worth another try."""
    again, reason = {shard.sha256 for shard in todo}, "it did not come to the end of the stream; please report this"
    try:
        for summary in _plans(todo, work, plan):
            if summary[FAILURE]:
                done.failures[summary["shard"]] = summary[FAILURE]
                if summary["lasting"]:
                    again.discard(summary["shard"])
                continue
            again.discard(summary["shard"])
            done.failures.pop(summary["shard"], None)
            done.written += summary["written"]
            shown.add(summary["rows"], summary["quarantined"])
    except _GONE as error:
        cause = getattr(error, "cause", error)
        if getattr(cause, "actor_init_failed", False):  # as its next one would
            raise
        reason = f"{type(cause).__name__}: {str(cause).splitlines()[0][:200]}"
    for shard in again:
        done.failures.setdefault(shard, reason)
    return again


def _plans(todo: Sequence[ShardEntry], work: Work, plan: Plan) -> Iterator[dict[str, Any]]:
    """The summaries of all shards, from one plan of Ray Data after the other."""
    size = _SHARDS_PER_ACTOR * plan.models.processes
    for start in range(0, len(todo), size):
        yield from _stream(todo[start : start + size], work, plan)


def _stream(shards: Sequence[ShardEntry], work: Work, plan: Plan) -> Iterator[dict[str, Any]]:
    """Run the shards through the stages; yields the summary of each, in the order they end."""
    config = work.config
    side = checkpoints.image_size(config.segment, config.storage)
    decode = {"size": side, "max_pixels": config.decode.max_pixels}
    items = [asdict(shard) for shard in shards]
    journal = open_journal()
    reading = {
        "source": work.source,
        "decode": decode,
        "labelled_only": work.prompts is None,
        "isolation": Isolation("decode", journal),
    }
    loading = (work, plan.models, plan.device, journal)
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(read_and_decode, batch_size=1, fn_kwargs=reading, **_tasks(plan.decode, len(items)))
        .map_batches(ModelActor, batch_size=None, fn_constructor_args=loading, **_actors(plan.models, len(items)))
    )
    yield from dataset.iter_rows()


def _tasks(share: Share, shards: int) -> dict[str, Any]:
    return {"compute": TaskPoolStrategy(size=min(share.processes, shards) or None), "num_cpus": share.cpus}


def _actors(share: Share, shards: int) -> dict[str, Any]:
    pool = ActorPoolStrategy(size=min(share.processes, shards), max_tasks_in_flight_per_actor=2)
    return {"compute": pool, "num_cpus": share.cpus, "num_gpus": share.gpus, "runtime_env": {"env_vars": ENVIRONMENT}}
