"""One run over the shards of an archive: what ``embed`` and ``score`` have in common."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from medfocus.cluster.connect import connected, longest_wait
from medfocus.cluster.nodes import autoscaler_reach, await_room, logged_changes, node_resources
from medfocus.cluster.resources import Demand, ResourcePlan, describe, plan_resources
from medfocus.pipeline.config import ClusterSection
from medfocus.pipeline.console.logs import log, progress
from medfocus.pipeline.data.manifest import FILE, Manifest, ShardEntry
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.errors import before_start
from medfocus.pipeline.execution.job import JobSpec
from medfocus.pipeline.execution.stream import run_shards
from medfocus.pipeline.tracking import runs


@dataclass(frozen=True)
class ArchiveTotals:
    """Totals of a run over an archive.

    Args:
        rows: number of rows of the archive that the job is for.
        resumed: number of these that an earlier call has finished.
        written: number of rows that this call has written, without quarantined rows.
        retried_shards: number of retries, each of one shard, after transient errors.
        quarantined: number of rows in quarantine, of all calls.
        seconds: wall time of this call.
        mlflow_run_id: id of the run in MLflow.
    """

    rows: int
    resumed: int
    written: int
    retried_shards: int
    quarantined: int
    seconds: float
    mlflow_run_id: str


@contextmanager
def run_archive(
    command: str,
    job: JobSpec,
    manifest: Manifest,
    settings: Mapping[str, Any],
    *,
    parameters: Mapping[str, str] | None = None,
    overwrite: bool = False,
    retry_quarantined: bool = False,
) -> Iterator[ArchiveTotals]:
    """Run a job over all shards of an archive that are not finished, and yield the totals inside the MLflow run.

    Args:
        command: name of the command, also that of the MLflow run.
        job: specification of the job; a job without prompts is for labelled rows only.
        manifest: manifest of the shards.
        settings: everything that decides the rows; rows of other settings never mix in one output.
        parameters: parameters to log in MLflow beside the configuration.
        overwrite: remove the rows of earlier runs first.
        retry_quarantined: process shards with quarantined rows again.

    Raises:
        UsageError: the output holds rows of other settings or shards.
        MedFocusError: some shards cannot be finished, or too many rows are in quarantine.
    """
    output, config = job.output, job.config
    with before_start():
        record, unfinished = output.begin(settings, manifest, overwrite=overwrite, retry_quarantined=retry_quarantined)
    labelled_only = job.prompts is None
    shards = [shard for shard in manifest.shards if shard.most_labelled or not labelled_only]
    unfinished = [shard for shard in unfinished if shard.most_labelled or not labelled_only]
    rows = _count_rows(shards, labelled_only)
    resumed = rows - _count_rows(unfinished, labelled_only)
    # Shards that are processed again for their quarantined rows are no fair sample of the archive.
    most_quarantined = None if retry_quarantined else config.score.max_quarantined
    started = time.monotonic()
    with runs.run(command, config, resume=record.get("mlflow_run_id")) as active:
        output.update(mlflow_run_id=active.info.run_id)
        runs.log_dataset("shards", manifest.digest, command)
        if parameters:
            runs.log_parameters(parameters)
        with connected(config.cluster.address, config.cluster.cpus):
            check_shared(config.storage, read=[job.source / FILE], written=[output.prefix])
            plan = _plan(config.cluster, len(unfinished))
            with progress(command, rows, resumed, runs.log_progress) as counter, logged_changes(plan.models):
                summary = run_shards(unfinished, job, plan, counter, most_quarantined)
        output.check_complete(shards)
        output.update(finished=True, digest=manifest.digest)
        seconds = time.monotonic() - started
        yield ArchiveTotals(
            rows=rows,
            resumed=resumed,
            written=summary.written,
            retried_shards=summary.retried,
            quarantined=output.quarantined(),
            seconds=seconds,
            mlflow_run_id=active.info.run_id,
        )


def _plan(section: ClusterSection, shards: int) -> ResourcePlan:
    """The resource plan of a run over so many shards, once a node has room for the models.

    Raises:
        UsageError: the cluster cannot run the models, or no node with room for them came.
    """
    with before_start():
        first = _bounded_plan(section.demand, shards)
        if shards:
            await_room(first.models, longest_wait(section.address, section.wait_minutes))
        plan = _bounded_plan(section.demand, shards)  # the first node says how many CPUs a GPU has
    log.info("plan: %s; now %s", plan, describe(node_resources()))
    return plan


def _bounded_plan(demand: Demand, shards: int) -> ResourcePlan:
    """The plan for the nodes that are there or may come, with no more actors than shards."""
    plan = plan_resources(node_resources(), demand, autoscaler_reach())
    return replace(plan, models=replace(plan.models, processes=min(plan.models.processes, max(shards, 1))))


def _count_rows(shards: Sequence[ShardEntry], labelled_only: bool) -> int:
    return sum(shard.most_labelled if labelled_only else shard.rows for shard in shards)
