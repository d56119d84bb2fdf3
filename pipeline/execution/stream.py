"""The stream behind ``embed`` and ``score``: shards are read, decoded, segmented, embedded and committed.

A block is a shard: it passes each stage whole and is committed by itself, so that finished work survives a stop.
Rows are never dropped: a row that fails carries its failure to the commit. A shard that fails for a transient reason is
retried after the other shards. Ray Data repeats the tasks of a dead worker without limit; the journal of ``isolation``
makes sure that a poison row does not kill workers without limit.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy, ExecutionResources, TaskPoolStrategy
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError
from scipy.stats import binom

from medfocus.cluster.data_context import scoped_data_context
from medfocus.cluster.devices import names_device_error
from medfocus.cluster.resources import ResourcePlan, Share
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.console.logs import Progress, log
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution.actor import ENVIRONMENT, ModelActor
from medfocus.pipeline.execution.decode import read_and_decode
from medfocus.pipeline.execution.job import JobSpec
from medfocus.pipeline.isolation.failure import FAILURE
from medfocus.pipeline.isolation.isolation import Isolation
from medfocus.pipeline.isolation.journal import open_journal

# How often a shard is tried, and the seconds before its second try. Each later try waits twice as long.
_MOST_TRIES, _FIRST_WAIT = 4, 2.0
# Shards in one execution of Ray Data, for each actor. Before it begins, an execution makes a block of each shard, which
# takes a millisecond and 6 KiB in the driver. The next execution loads the models anew.
_SHARDS_PER_ACTOR = 500
# Ray raises these if a process, a node or an object is lost and its own retries were in vain.
_LOSS_ERRORS = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
_LOST_ROWS = "its rows did not come to the end of the stream; see Ray's logs of the node that had it"
# A run stops early from this many quarantined rows on, if chance explains them with less than this probability.
_FEWEST_QUARANTINED, _CHANCE = 32, 1e-6


@dataclass
class RunSummary:
    """Outcome of a run over shards.

    Args:
        written: number of rows written.
        retried: number of retries, each of one shard.
        failures: reasons why shards could not be finished, by key.
    """

    written: int = 0
    retried: int = 0
    failures: dict[str, str] = field(default_factory=dict)


@dataclass
class PassOutcome:
    """Outcome of one pass over shards.

    Args:
        retryable: keys of the shards that are not finished and are worth a retry.
        failed: keys of the shards for which a worker reported a failure. Shards that are neither finished nor failed
            were lost with a process.
        finished: number of finished shards.
    """

    retryable: set[str]
    failed: set[str] = field(default_factory=set)
    finished: int = 0


def run_shards(
    shards: Sequence[ShardEntry],
    job: JobSpec,
    plan: ResourcePlan,
    progress: Progress,
    most_quarantined: float | None = None,
) -> RunSummary:
    """Process and commit shards; those that fail for a transient reason are retried in later passes.

    Args:
        shards: the shards to process.
        job: specification of the job.
        plan: resource plan of the cluster.
        progress: progress of the command; it counts the rows of finished shards.
        most_quarantined: allowed share of quarantined rows. The run stops when their number exceeds it by more than
            chance explains. None allows any share.

    Returns:
        The number of rows written and of retries; there are no failures.

    Raises:
        MedFocusError: some shards could not be finished, and all others are; or too many rows are in quarantine.
    """
    summary, todo = RunSummary(), list(shards)
    tries: Counter[str] = Counter()
    while todo:
        outcome = _run_pass(todo, job, plan, progress, summary, most_quarantined)
        # If a process was lost, only shards with a failure of their own have used up a try, as long as some shards were
        # finished.
        tries.update(outcome.failed if outcome.finished else outcome.retryable)
        todo = [shard for shard in todo if shard.key in outcome.retryable and tries[shard.key] < _MOST_TRIES]
        if todo:
            summary.retried += len(todo)
            cause = summary.failures[todo[0].key]
            log.warning("%d shards are tried again; %s: %s", len(todo), todo[0].name, cause)
            time.sleep(_wait(max(tries[shard.key] for shard in todo)))
    unfinished = [shard for shard in shards if shard.key in summary.failures]
    if unfinished:
        raise MedFocusError(
            f"{summary.failures[unfinished[0].key]} ({len(unfinished)} of {len(shards)} shards could not be"
            " finished, the others are; the same call goes on with them)"
        )
    return summary


def _wait(tries: int) -> float:
    """Seconds before the next pass, after so many tries; random, so that runs on one storage do not retry in step."""
    return _FIRST_WAIT * 2 ** max(tries - 1, 0) * random.uniform(0.5, 1.5)


def _run_pass(
    shards: Sequence[ShardEntry],
    job: JobSpec,
    plan: ResourcePlan,
    progress: Progress,
    summary: RunSummary,
    most_quarantined: float | None,
) -> PassOutcome:
    """Try each shard once; adds to ``summary`` what is written, and the failures of this pass."""
    outcome = PassOutcome({shard.key for shard in shards})
    loss = _LOST_ROWS
    try:
        for result in _stream(shards, job, plan):
            key = result["shard"]
            if result[FAILURE]:
                summary.failures[key] = result[FAILURE]
                outcome.failed.add(key)
                if result["permanent"]:
                    outcome.retryable.discard(key)
                continue
            outcome.retryable.discard(key)
            outcome.finished += 1
            summary.failures.pop(key, None)
            summary.written += result["written"]
            progress.add(result["rows"], result["quarantined"])
            if most_quarantined is not None:
                _check_quarantined(progress, most_quarantined)
    except _LOSS_ERRORS as error:
        cause = getattr(error, "cause", error)
        # A broken device may be one of several. Any other error at the start of an actor is permanent.
        if getattr(cause, "actor_init_failed", False) and not names_device_error(str(cause)):
            raise
        loss = reason(cause)
    for key in outcome.retryable - outcome.failed:
        summary.failures[key] = loss
    return outcome


def _check_quarantined(progress: Progress, allowed: float) -> None:
    """Raise MedFocusError if more rows are in quarantine than chance explains with the allowed share.

    Shards are fair samples of the archive, so the rows so far stand for all rows: one-sided binomial test.
    """
    rows, quarantined = progress.done - progress.first, progress.quarantined
    if quarantined < _FEWEST_QUARANTINED or quarantined <= allowed * rows:
        return
    if binom.sf(quarantined - 1, rows, allowed) < _CHANCE:
        raise MedFocusError(
            f"stopped early: {quarantined} of the first {rows} rows are in quarantine, more than score.max_quarantined"
            f" ({allowed:g}) allows and than chance explains; medfocus quarantine counts the causes; mend them and go"
            " on with --retry-quarantined, or raise score.max_quarantined"
        )


def _stream(shards: Sequence[ShardEntry], job: JobSpec, plan: ResourcePlan) -> Iterator[dict[str, Any]]:
    """The summaries of all shards, from one execution of Ray Data after the other."""
    size = _SHARDS_PER_ACTOR * plan.models.processes
    for start in range(0, len(shards), size):
        yield from _execute(shards[start : start + size], job, plan)


def _execute(shards: Sequence[ShardEntry], job: JobSpec, plan: ResourcePlan) -> Iterator[dict[str, Any]]:
    """Run shards through the stages; yields the summary of each (see ``commit_rows``), in the order they end."""
    items = [{"entry": json.dumps(asdict(shard))} for shard in shards]
    journal = open_journal()
    decode_arguments = {
        "source": job.source,
        "decode": {"size": job.image_size, "max_pixels": job.config.decode.max_pixels},
        "labelled_only": job.prompts is None,
        "isolation": Isolation("decode", journal),
    }
    model_arguments = (job, plan.models, plan.device, journal)
    with scoped_data_context() as context:
        if plan.limits is not None:
            context.execution_options.resource_limits = ExecutionResources.for_limits(**plan.limits)
        dataset = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(read_and_decode, batch_size=1, fn_kwargs=decode_arguments, **_tasks(plan.decode, len(items)))
            # A block is a shard, of whatever size. The public map_batches refuses that (batch_size=None) beside GPUs.
            .map_batches_internal(ModelActor, fn_constructor_args=model_arguments, **_actors(plan, len(items)))
        )
    yield from dataset.iter_rows()


def _tasks(share: Share, shards: int) -> dict[str, Any]:
    """Options of the tasks that decode, for ``map_batches``."""
    return {"compute": TaskPoolStrategy(size=min(share.processes, shards) or None), "num_cpus": share.cpus}


def _actors(plan: ResourcePlan, shards: int) -> dict[str, Any]:
    """Options of the actors that hold the models, for ``map_batches``."""
    share = plan.models
    size = min(share.processes, shards)
    pool = ActorPoolStrategy(min_size=size, max_size=shards if plan.grows else size, max_tasks_in_flight_per_actor=2)
    return {"compute": pool, "num_cpus": share.cpus, "num_gpus": share.gpus, "runtime_env": {"env_vars": ENVIRONMENT}}
