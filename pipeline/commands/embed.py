"""``medfocus embed``: masks and tokens of the labelled rows of an archive, kept for training."""

import time
from typing import Any

from medfocus.cluster.connect import connected
from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event, progress
from medfocus.pipeline.data.commit import FEATURES, Output
from medfocus.pipeline.data.manifest import FILE, read_manifest
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError, before_start
from medfocus.pipeline.execution.job import JobSpec, Provenance
from medfocus.pipeline.execution.stream import run_shards
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.tracking import runs


def run(
    config: Config, shards: str, features: str, *, overwrite: bool = False, retry_quarantined: bool = False
) -> dict[str, Any]:
    """Embed the labelled rows of the shards; a run that was stopped goes on where it was.

    Args:
        config: ``segment``, ``clip`` and ``model.focus`` decide what is made.
        shards: prefix with a manifest.
        features: prefix to write to.
        overwrite: remove what ``features`` holds first.
        retry_quarantined: take shards with quarantined rows again; ``decode.max_pixels`` may have changed.

    Raises:
        UsageError: there are no shards, or ``features`` holds rows made by other settings.
    """
    with before_start():
        config = model_files.resolve_paths(config)
        source = locate(shards, config.storage)
        manifest = read_manifest(source)
        rows = sum(shard.most_labelled for shard in manifest.shards)
        if not rows:
            raise UsageError(f"{source.uri}: no image has a label; pack again with labels")
        foundation = Foundation.of(config)
        image_size = model_files.image_size(config.segment, config.storage)
        output = Output(locate(features, config.storage), FEATURES, replaces=retry_quarantined)
        settings = {"foundation": vars(foundation), "max_pixels": config.decode.max_pixels}
        record, todo = output.begin(settings, manifest, overwrite=overwrite, retry_quarantined=retry_quarantined)
    todo = [shard for shard in todo if shard.most_labelled]
    resumed = rows - sum(shard.most_labelled for shard in todo)
    started = time.monotonic()
    with runs.run("embed", config, resume=record.get("mlflow_run_id")) as active:
        output.update(mlflow_run_id=active.info.run_id)
        runs.log_dataset("shards", manifest.digest, "embed")
        with connected(config.cluster.address, config.cluster.cpus) as resources:
            check_shared(config.storage, read=[source / FILE], written=[output.prefix])
            with progress("embed", rows, resumed, runs.log_progress) as shown:
                provenance = Provenance(foundation.key)
                job = JobSpec(source, output, config, foundation, image_size, provenance, prompts=None)
                most_quarantined = None if retry_quarantined else config.score.max_quarantined
                done = run_shards(todo, job, plan_resources(resources), shown, most_quarantined)
        output.check_complete([shard for shard in manifest.shards if shard.most_labelled])
        output.update(finished=True, digest=manifest.digest)
        seconds = time.monotonic() - started
        summary = {
            "rows": rows,
            "embedded": done.written,
            "resumed": resumed,
            "retried_shards": done.retried,
            "quarantined": output.quarantined(),
            "seconds": seconds,
            "images_per_second": done.written / seconds,
        }
        runs.log_metrics(summary)
        event("embedded", **summary)
        return summary | {"model_key": foundation.key, "mlflow_run_id": active.info.run_id}
