"""The one stream behind ``embed`` and ``score``: shards are read, decoded, segmented, embedded and committed.

A block is a shard: it passes each stage whole and is committed by itself, so that what is finished survives.
Rows are never dropped on the way; a row that fails carries its failure to the commit. A shard that cannot be finished
for a transient reason is tried again, after the others. Ray Data runs tasks again whose worker died, without end; the
journal keeps a poison row from killing workers for ever.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError
from scipy.stats import binom

from medfocus.cluster.devices import names_device_error
from medfocus.cluster.resources import ResourcePlan, Share
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.console.logs import Progress, log
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution.actor import ENVIRONMENT, ModelActor
from medfocus.pipeline.execution.block import FAILURE
from medfocus.pipeline.execution.decode import read_and_decode
from medfocus.pipeline.execution.isolation import Isolation
from medfocus.pipeline.execution.job import JobSpec
from medfocus.pipeline.execution.journal import open_journal

# How often a shard is tried, and the seconds before the first new try; each later one waits twice as long.
_TRIES, _PAUSE = 4, 2.0
# Shards in one plan of Ray Data, for each actor. Before a plan begins it makes a block of each, at a millisecond and
# 6 KiB in the driver; when it ends its models are loaded anew.
_SHARDS_PER_ACTOR = 500
# What Ray raises where a process, a node or an object is gone and its own new tries were in vain.
_GONE = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)


# So many rows in quarantine may end a run before its end, if they are more than chance makes of the allowed share.
_FEWEST_QUARANTINED, _CHANCE = 32, 1e-6


@dataclass
class RunSummary:
    """What became of the shards of a run: rows written, shards tried again, and why some could not be finished."""

    written: int = 0
    retried: int = 0
    failures: dict[str, str] = field(default_factory=dict)


@dataclass
class Attempt:
    """One pass over shards.

    Args:
        again: digests of the shards that are worth another try.
        failed: digests of those that said why they failed.
        finished: how many shards were finished.
    """

    again: set[str]
    failed: set[str] = field(default_factory=set)
    finished: int = 0


def run_shards(
    shards: Sequence[ShardEntry],
    job: JobSpec,
    plan: ResourcePlan,
    shown: Progress,
    most_quarantined: float | None = None,
) -> RunSummary:
    """Finish the shards, those that fail for a transient reason at a later try.

    Args:
        shards: to do.
        job: what is done to them.
        plan: of the cluster.
        shown: is told of finished rows.
        most_quarantined: share of rows that may be in quarantine; more than chance makes of it ends the run. None lets
            any share pass.

    Raises:
        MedFocusError: some shards could not be finished, all others are; or too many rows are in quarantine.
    """
    done, todo = RunSummary(), list(shards)
    tries: Counter[str] = Counter()
    while todo:
        attempt = _pass(todo, job, plan, shown, done, most_quarantined)
        # A pass that a lost process ended costs no shard a try as long as some are finished.
        tries.update(attempt.failed if attempt.finished else attempt.again)
        todo = [shard for shard in todo if shard.sha256 in attempt.again and tries[shard.sha256] < _TRIES]
        if todo:
            done.retried += len(todo)
            log.warning("%d shards are tried again; %s: %s", len(todo), todo[0].name, done.failures[todo[0].sha256])
            longest = max(tries[shard.sha256] for shard in todo)
            time.sleep(_PAUSE * 2 ** max(longest - 1, 0) * random.uniform(0.5, 1.5))
    failed = [shard for shard in shards if shard.sha256 in done.failures]
    if failed:
        raise MedFocusError(
            f"{done.failures[failed[0].sha256]} ({len(failed)} of {len(shards)} shards could not be finished, the"
            " others are; the same call goes on with them)"
        )
    return done


def _pass(
    todo: Sequence[ShardEntry],
    job: JobSpec,
    plan: ResourcePlan,
    shown: Progress,
    done: RunSummary,
    most_quarantined: float | None,
) -> Attempt:
    """Try shards once."""
    attempt = Attempt({shard.sha256 for shard in todo})
    lost = "its rows did not come to the end of the stream; see Ray's logs of the node that had it"
    try:
        for summary in _plans(todo, job, plan):
            shard = summary["shard"]
            if summary[FAILURE]:
                done.failures[shard] = summary[FAILURE]
                attempt.failed.add(shard)
                if summary["lasting"]:
                    attempt.again.discard(shard)
                continue
            attempt.again.discard(shard)
            attempt.finished += 1
            done.failures.pop(shard, None)
            done.written += summary["written"]
            shown.add(summary["rows"], summary["quarantined"])
            if most_quarantined is not None:
                _check_quarantined(shown, most_quarantined)
    except _GONE as error:
        cause = getattr(error, "cause", error)
        # A device that fails may be one of several. Anything else that an actor cannot begin with fails the next too.
        if getattr(cause, "actor_init_failed", False) and not names_device_error(str(cause)):
            raise
        lost = reason(cause)
    for shard in attempt.again - attempt.failed:
        done.failures[shard] = lost
    return attempt


def _check_quarantined(shown: Progress, allowed: float) -> None:
    """Raise MedFocusError if more rows are in quarantine than chance makes of the allowed share.

    Shards are fair samples of the archive, so that the rows so far tell of the others: one-sided binomial test.
    """
    rows, quarantined = shown.done - shown.first, shown.quarantined
    if quarantined < _FEWEST_QUARANTINED or quarantined <= allowed * rows:
        return
    if binom.sf(quarantined - 1, rows, allowed) < _CHANCE:
        raise MedFocusError(
            f"stopped early: {quarantined} of the first {rows} rows are in quarantine, more than score.max_quarantined"
            f" ({allowed:g}) allows and than chance explains; medfocus quarantine counts the causes; mend them and go"
            " on with --retry-quarantined, or raise score.max_quarantined"
        )


def _plans(todo: Sequence[ShardEntry], job: JobSpec, plan: ResourcePlan) -> Iterator[dict[str, Any]]:
    """The summaries of all shards, from one plan of Ray Data after the other."""
    size = _SHARDS_PER_ACTOR * plan.models.processes
    for start in range(0, len(todo), size):
        yield from _stream(todo[start : start + size], job, plan)


def _stream(shards: Sequence[ShardEntry], job: JobSpec, plan: ResourcePlan) -> Iterator[dict[str, Any]]:
    """Run the shards through the stages; yields the summary of each, in the order they end."""
    decode = {"size": job.image_size, "max_pixels": job.config.decode.max_pixels}
    items = [asdict(shard) for shard in shards]
    journal = open_journal()
    reading = {
        "source": job.source,
        "decode": decode,
        "labelled_only": job.prompts is None,
        "isolation": Isolation("decode", journal),
    }
    loading = (job, plan.models, plan.device, journal)
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
