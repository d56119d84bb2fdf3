"""``medfocus score``: predictions and quarantine of a whole archive."""

from typing import Any

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event
from medfocus.pipeline.data.commit import PREDICTIONS, Output
from medfocus.pipeline.data.manifest import read_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import TooManyQuarantined, before_start
from medfocus.pipeline.execution.archive import run_archive
from medfocus.pipeline.execution.job import JobSpec, Provenance
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.model import Model
from medfocus.pipeline.models.prompts import Prompts
from medfocus.pipeline.models.registry import resolve_model
from medfocus.pipeline.tracking import runs


def run(
    config: Config, shards: str, out: str, model_uri: str, *, overwrite: bool = False, retry_quarantined: bool = False
) -> dict[str, Any]:
    """Score every row of the shards. A run that was stopped continues with the same call.

    Args:
        config: the configuration; the sections that the model was trained with are taken from the model.
        shards: prefix that ``pack`` wrote.
        out: prefix for ``predictions/`` and ``quarantine/``.
        model_uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a folder.
        overwrite: remove what ``out`` holds first.
        retry_quarantined: take shards with quarantined rows again; ``decode.max_pixels`` may have changed.

    Returns:
        ``rows`` of the archive, each of them ``scored`` or ``quarantined``; ``resumed`` rows were finished by an
        earlier call; ``retried_shards``, ``seconds``, ``images_per_second``, ``model_version`` and ``mlflow_run_id``.

    Raises:
        UsageError: there are no shards or no such model, or ``out`` holds rows of another model.
        MedFocusError: some shards cannot be finished, or the run was stopped for its many quarantined rows.
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
    provenance = Provenance(version, model.settings.classes)
    job = JobSpec(source, output, config, model.foundation, image_size, provenance, prompts)
    with run_archive(
        "score",
        job,
        manifest,
        run_settings(model, version, prompts, config),
        parameters={"model_version": version},
        overwrite=overwrite,
        retry_quarantined=retry_quarantined,
    ) as totals:
        summary = {
            "rows": totals.rows,
            "scored": totals.rows - totals.quarantined,
            "quarantined": totals.quarantined,
            "resumed": totals.resumed,
            "retried_shards": totals.retried_shards,
            "seconds": totals.seconds,
            "images_per_second": (totals.rows - totals.resumed) / totals.seconds,
        }
        runs.log_metrics(summary)
        event("scored", **summary, model_version=version)
    result = summary | {"model_version": version, "mlflow_run_id": totals.mlflow_run_id}
    _check_quarantined(result, out, config.score.max_quarantined)
    return result


def _check_quarantined(result: dict[str, Any], out: str, allowed: float) -> None:
    """Raise TooManyQuarantined if the share of quarantined rows is above the allowed one."""
    if result["quarantined"] > allowed * result["rows"]:
        raise TooManyQuarantined(
            f"{out}: {result['quarantined']} of {result['rows']} rows are in quarantine, more than"
            f" score.max_quarantined ({allowed:g}) allows; see {out}/quarantine for the causes",
            result,
        )


def run_settings(model: Model, version: str, prompts: Prompts, config: Config) -> dict[str, Any]:
    """All that decides the rows of a scoring run: rows of other settings never mix in one output.

    Args:
        model: the model that scores.
        version: name and version of the model.
        prompts: of the model; their calibration decides which predictions are accepted.
        config: the configuration; ``decode.max_pixels`` decides which images are refused.
    """
    return {
        "model": version,
        "model_digest": model.digest,  # a version of the same name in another registry is another model
        "foundation": vars(model.foundation),
        "max_pixels": config.decode.max_pixels,
        "accept_at": prompts.calibration.accept_at,
    }
