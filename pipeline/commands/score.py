"""``medfocus score``: predictions and quarantine of a whole archive."""

import time
from typing import Any

from medfocus.cluster.connect import connected
from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event, progress
from medfocus.pipeline.data.commit import PREDICTIONS, Output
from medfocus.pipeline.data.manifest import FILE, read_manifest
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import TooManyQuarantined, before_start
from medfocus.pipeline.execution.job import JobSpec, Provenance
from medfocus.pipeline.execution.stream import run_shards
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.model import Model
from medfocus.pipeline.models.prompts import Prompts
from medfocus.pipeline.models.registry import resolve_model
from medfocus.pipeline.tracking import runs


def run(
    config: Config, shards: str, out: str, model_uri: str, *, overwrite: bool = False, retry_quarantined: bool = False
) -> dict[str, Any]:
    """Score every row of the shards; a run that was stopped goes on where it was.

    Args:
        config: the sections that the model was trained with are taken from the model.
        shards: prefix with a manifest.
        out: prefix for ``predictions/`` and ``quarantine/``.
        model_uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a folder.
        overwrite: remove what ``out`` holds first.
        retry_quarantined: take shards with quarantined rows again; ``decode.max_pixels`` may have changed.

    Raises:
        UsageError: there are no shards or no such model, or ``out`` holds rows of another model.
        MedFocusError: some shards could not be finished, or so many rows are in quarantine that the run was stopped.
        TooManyQuarantined: done, but the share of quarantined rows is above ``score.max_quarantined``.
    """
    with before_start():
        config = model_files.resolve_paths(config)
        source = locate(shards, config.storage)
        manifest = read_manifest(source)
        model, version = resolve_model(model_uri, config)
        config = model_files.resolve_paths(model.foundation.adopt(config))
        image_size = model_files.image_size(config.segment, config.storage)
        config = config.model_copy(update={"model": config.model.model_copy(update={"focus": model.settings.focus})})
        prompts = model.prompts(config.score.accept_at)
        output = Output(locate(out, config.storage), PREDICTIONS, replaces=retry_quarantined)
        settings = run_settings(model, version, prompts, config)
        record, todo = output.begin(settings, manifest, overwrite=overwrite, retry_quarantined=retry_quarantined)
    resumed = manifest.rows - sum(shard.rows for shard in todo)
    started = time.monotonic()
    with runs.run("score", config, resume=record.get("mlflow_run_id")) as active:
        output.update(mlflow_run_id=active.info.run_id)
        runs.log_dataset("shards", manifest.digest, "score")
        runs.log_parameters({"model_version": version})
        with connected(config.cluster.address, config.cluster.cpus) as resources:
            check_shared(config.storage, read=[source / FILE], written=[output.prefix])
            with progress("score", manifest.rows, resumed, runs.log_progress) as shown:
                provenance = Provenance(version, model.settings.classes)
                job = JobSpec(source, output, config, model.foundation, image_size, provenance, prompts)
                # Shards that are taken again for their quarantined rows are no fair sample.
                most_quarantined = None if retry_quarantined else config.score.max_quarantined
                done = run_shards(todo, job, plan_resources(resources), shown, most_quarantined)
        output.check_complete(manifest.shards)
        output.update(finished=True, digest=manifest.digest)
        seconds = time.monotonic() - started
        quarantined = output.quarantined()
        summary = {
            "rows": manifest.rows,
            "scored": manifest.rows - quarantined,
            "quarantined": quarantined,
            "resumed": resumed,
            "retried_shards": done.retried,
            "seconds": seconds,
            "images_per_second": (manifest.rows - resumed) / seconds,
        }
        runs.log_metrics(summary)
        event("scored", **summary, model_version=version)
        result = summary | {"model_version": version, "mlflow_run_id": active.info.run_id}
    allowed = config.score.max_quarantined
    if quarantined > allowed * manifest.rows:
        raise TooManyQuarantined(
            f"{out}: {quarantined} of {manifest.rows} rows are in quarantine, more than score.max_quarantined"
            f" ({allowed:g}) allows; see {out}/quarantine for the causes",
            result,
        )
    return result


def run_settings(model: Model, version: str, prompts: Prompts, config: Config) -> dict[str, Any]:
    """All that decides the rows of a scoring run: rows made with other settings never mix in one output."""
    return {
        "model": version,
        "model_digest": model.digest,  # a version of the same name in another registry is another model
        "foundation": vars(model.foundation),
        "max_pixels": config.decode.max_pixels,
        "accept_at": prompts.calibration.accept_at,
    }
