"""``medfocus train``: prompt tuning over stored features, registered as a model version."""

from collections import Counter
from typing import Any

from scipy.special import softmax

from medfocus.cluster.connect import connected
from medfocus.cluster.resources import training_share
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event
from medfocus.pipeline.data.commit import FEATURES, RUN_FILE, Output, settings_key
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import UsageError, before_start
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.calibration import calibrate
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.model import Model
from medfocus.pipeline.models.registry import check_name, register
from medfocus.pipeline.tracking import runs
from medfocus.pipeline.training.features import read_labels
from medfocus.pipeline.training.fit import FOLDER, fit
from medfocus.pipeline.training.hold_out import hold_out


def run(config: Config, features: str, name: str) -> dict[str, Any]:
    """Tune prompts on the features and register them; a run that was stopped goes on at its last checkpoint.

    Args:
        config: ``train`` and ``model``; the sections the features were made with are taken from them.
        features: prefix that ``embed`` has finished.
        name: registered model.

    Raises:
        UsageError: the features are not finished, the labels do not suffice, or the name cannot be registered.
    """
    with before_start():
        check_name(name)
        prefix = locate(features, config.storage)
        record = _finished_features(prefix)
        foundation = Foundation(**record["settings"]["foundation"])
        if config.model.focus in ("masked_image", "both") and not foundation.region:
            raise UsageError(
                f"{prefix.uri}: made without regions' tokens, which model.focus={config.model.focus} needs; embed again"
            )
        config = model_files.resolve_paths(foundation.adopt(model_files.resolve_paths(config)))
        labels = read_labels(prefix)
        folds, held_out = hold_out(prefix, labels, config)
        fewest = min(len(folds) - rows for rows in Counter(folds.values()).values())
        if fewest < config.train.workers:
            raise UsageError(
                f"train.workers is {config.train.workers}, more than the {fewest} training rows of a fold;"
                " set it lower or label more images"
            )
    settings = config.model.prompts(labels["label"], config.clip.cut)
    key = settings_key(
        {"foundation": vars(foundation), "model": settings.to_json(), "train": config.train.model_dump()}
        | {"seed": config.seed, "rows": sorted(folds.items())}
    )[:16]
    progress_file = prefix / FOLDER / f"{key}.json"
    resume = progress_file.read_json()["mlflow_run_id"] if progress_file.exists() else None
    with runs.run("train", config, resume=resume) as active:
        progress_file.write_json({"mlflow_run_id": active.info.run_id})
        runs.log_dataset("features", record["digest"], "train")
        runs.log_tags({"held_out": held_out.how})
        with connected(config.cluster.address, config.cluster.cpus) as resources:
            check_shared(config.storage, read=[], written=[prefix])
            share = training_share(resources, config.train.workers)
            outcome = fit(config, settings, prefix, folds, key, share, foundation.clip_identity)
        runs.log_history(outcome["history"])
        logits, targets = outcome["held_out_logits"], outcome["held_out_targets"]
        calibration = calibrate(logits, targets, config.train.target_sensitivity)
        model = Model(settings, outcome["state"], foundation, calibration, held_out)
        model_uri = register(model, name, active.info.run_id)
        (prefix / FOLDER / key).delete()  # the checkpoints: the model is in the registry
        progress_file.delete()
        confidence = softmax(logits / calibration.temperature, axis=1).max(1)
        summary = {
            "epochs": outcome["epochs"],
            "training_rows": len(labels["label"]),
            "held_out_rows": len(targets),
            "held_out_accuracy": float((logits.argmax(1) == targets).mean()),
            "held_out_coverage": float((confidence >= calibration.accept_at).mean()),
            "held_out": held_out.how,
            "held_out_groups": held_out.groups,
            "rows_without_patient": held_out.rows_without_patient,
            "near_duplicates_apart": held_out.near_duplicates_apart,
            **vars(calibration),
            "learned_parameters": sum(value.numel() for value in outcome["state"].values()),
            "resumed_epochs": outcome["resumed_epochs"],
        }
        runs.log_metrics(summary)
        event("trained", **summary, model=model_uri)
        return summary | {"model_uri": model_uri, "mlflow_run_id": active.info.run_id}


def _finished_features(prefix: Location) -> dict[str, Any]:
    if not (prefix / RUN_FILE).exists():
        raise UsageError(f"{prefix.uri}: holds no features; run medfocus embed into it, or correct the path")
    record = Output(prefix, FEATURES).read_record()
    if "model" in record.get("settings", {}):
        raise UsageError(f"{prefix.uri}: holds predictions, not features; give the prefix that embed wrote")
    if not record.get("finished"):
        raise UsageError(f"{prefix.uri}: embed has not finished here; start it again with the same call")
    return record
