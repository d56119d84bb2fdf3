"""``medfocus embed``: masks and tokens of the labelled rows of an archive, kept for training."""

from typing import Any

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event
from medfocus.pipeline.data.commit import FEATURES, Output
from medfocus.pipeline.data.manifest import read_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError, before_start
from medfocus.pipeline.execution.archive import run_archive
from medfocus.pipeline.execution.job import JobSpec, Provenance
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.tracking import runs


def run(
    config: Config, shards: str, features: str, *, overwrite: bool = False, retry_quarantined: bool = False
) -> dict[str, Any]:
    """Embed the labelled rows of the shards. A run that was stopped continues with the same call.

    Args:
        config: the configuration; ``segment``, ``clip`` and ``model.focus`` decide what the features are.
        shards: prefix that ``pack`` wrote.
        features: prefix to write to.
        overwrite: remove what ``features`` holds first.
        retry_quarantined: take shards with quarantined rows again; ``decode.max_pixels`` may have changed.

    Returns:
        ``rows`` with a label, of which ``resumed`` were finished by an earlier call and ``embedded`` by this one;
        ``retried_shards``, ``quarantined`` rows, ``seconds``, ``images_per_second``, ``model_key`` and
        ``mlflow_run_id``.

    Raises:
        UsageError: there are no shards, no row has a label, or ``features`` holds rows made by other settings.
        MedFocusError: some shards cannot be finished, or too many rows are in quarantine.
    """
    with before_start():
        config = model_files.resolve_paths(config)
        source = locate(shards, config.storage)
        manifest = read_manifest(source)
        if not any(shard.most_labelled for shard in manifest.shards):
            raise UsageError(f"{source.uri}: no image has a label; pack again with labels")
        foundation = Foundation.of(config)
        image_size = model_files.image_size(config.segment, config.storage)
        output = Output(locate(features, config.storage), FEATURES, replaces=retry_quarantined)
    job = JobSpec(source, output, config, foundation, image_size, Provenance(foundation.key), prompts=None)
    with run_archive(
        "embed",
        job,
        manifest,
        {"foundation": vars(foundation), "max_pixels": config.decode.max_pixels},
        overwrite=overwrite,
        retry_quarantined=retry_quarantined,
    ) as totals:
        summary = {
            "rows": totals.rows,
            "embedded": totals.written,
            "resumed": totals.resumed,
            "retried_shards": totals.retried_shards,
            "quarantined": totals.quarantined,
            "seconds": totals.seconds,
            "images_per_second": totals.written / totals.seconds,
        }
        runs.log_metrics(summary)
        event("embedded", **summary)
    return summary | {"model_key": foundation.key, "mlflow_run_id": totals.mlflow_run_id}
