"""``medfocus train``: prompt tuning on stored features; the result is registered as a model version."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import softmax

from medfocus.cluster.connect import connected, longest_wait
from medfocus.cluster.nodes import autoscaler_reach, await_room, node_resources
from medfocus.cluster.resources import Share, training_share
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event
from medfocus.pipeline.data.commit import FEATURES, RUN_FILE, Output, settings_key
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import UsageError, before_start
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.calibration import Calibration, calibrate
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.held_out import HeldOut
from medfocus.pipeline.models.model import Model
from medfocus.pipeline.models.registry import check_name, register
from medfocus.pipeline.tracking import runs
from medfocus.pipeline.training.features import read_labels
from medfocus.pipeline.training.fit import FOLDER, fit
from medfocus.pipeline.training.hold_out import hold_out
from medfocus.pipeline.training.state import CHECKPOINT_LAYOUT, TrainingResult


@dataclass(frozen=True)
class _TrainingInput:
    """The features of a training.

    Args:
        config: configuration of the call with the settings that the features were made with.
        prefix: prefix of the features.
        record: what ``embed`` recorded of its run.
        foundation: the frozen models that made the features.
        labels: ``image_id``, ``label`` and ``patient_id`` of every row, a list each.
        folds: fold of each ``image_id``.
        held_out: how the rows are held out.
    """

    config: Config
    prefix: Location
    record: Mapping[str, Any]
    foundation: Foundation
    labels: Mapping[str, list[Any]]
    folds: Mapping[str, int]
    held_out: HeldOut


def run(config: Config, features: str, name: str) -> dict[str, Any]:
    """Tune prompts on the features and register them; a call that was stopped continues from its last checkpoint.

    Args:
        config: ``train``, ``model`` and ``seed``; ``segment`` and ``clip`` are those the features were made with.
        features: prefix that ``embed`` has finished.
        name: name of the registered model.

    Returns:
        ``model_uri`` and ``mlflow_run_id``; ``epochs`` of the last round, ``resumed_epochs`` of an earlier call;
        ``training_rows`` and ``held_out_rows``; ``held_out_accuracy``, and ``held_out_coverage``, the share of the
        held-out rows that would be accepted, 0 to 1; how rows were held out (``held_out``, ``held_out_groups``,
        ``rows_without_patient``, ``near_duplicates_apart``); ``temperature``, ``accept_at`` and
        ``learned_parameters``.

    Raises:
        UsageError: the features are not finished, the labels do not suffice, or the name cannot be registered.
        MedFocusError: the training failed.
    """
    with before_start():
        check_name(name)
        inputs = _read_input(config, locate(features, config.storage))
    config, prefix, held_out = inputs.config, inputs.prefix, inputs.held_out
    settings = config.model.prompts(inputs.labels["label"], config.clip.cut)
    key = _training_key(inputs, settings.to_json())
    run_file = prefix / FOLDER / f"{key}.json"
    resume = run_file.read_json()["mlflow_run_id"] if run_file.exists() else None
    with runs.run("train", config, resume=resume) as active:
        run_file.write_json({"mlflow_run_id": active.info.run_id})
        runs.log_dataset("features", inputs.record["digest"], "train")
        runs.log_tags({"held_out": held_out.how})
        with connected(config.cluster.address, config.cluster.cpus):
            check_shared(config.storage, read=[], written=[prefix])
            share = _share(config)
            result = fit(config, settings, prefix, inputs.folds, key, share, inputs.foundation.clip_identity)
        runs.log_history(result.history)
        calibration = calibrate(result.held_out_logits, result.held_out_targets, config.train.target_sensitivity)
        state = {parameter: torch.tensor(values) for parameter, values in result.state.items()}
        model_uri = register(Model(settings, state, inputs.foundation, calibration, held_out), name, active.info.run_id)
        (prefix / FOLDER / key).delete()  # the checkpoints: the model is in the registry
        run_file.delete()
        summary = _summary(result, calibration, held_out)
        runs.log_metrics(summary)
        event("trained", **summary, model=model_uri)
        return summary | {"model_uri": model_uri, "mlflow_run_id": active.info.run_id}


def _share(config: Config) -> Share:
    """The share of the training processes, once a node has room for one.

    Raises:
        UsageError: no node with room for a training process came.
    """
    section = config.cluster
    with before_start():
        share = training_share(node_resources(), config.train.workers, section.demand, autoscaler_reach())
        await_room(share, longest_wait(section.address, section.wait_minutes))
    return share


def _read_input(config: Config, prefix: Location) -> _TrainingInput:
    """Read all of the features but their tokens, and assign the rows to folds."""
    record = _finished_features(prefix)
    foundation = Foundation(**record["settings"]["foundation"])
    if config.model.uses_region and not foundation.region:
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
    return _TrainingInput(config, prefix, record, foundation, labels, folds, held_out)


def _training_key(inputs: _TrainingInput, prompts: Mapping[str, Any]) -> str:
    """Identifies a training by everything that decides its result: the same call finds its checkpoints again."""
    decisive: dict[str, Any] = {
        "foundation": vars(inputs.foundation),
        "model": prompts,
        "train": inputs.config.train.model_dump(),
    }
    decisive |= {"seed": inputs.config.seed, "rows": sorted(inputs.folds.items()), "checkpoint": CHECKPOINT_LAYOUT}
    return settings_key(decisive)[:16]


def _summary(result: TrainingResult, calibration: Calibration, held_out: HeldOut) -> dict[str, Any]:
    """What the command reports of a training."""
    logits, targets = result.held_out_logits, result.held_out_targets
    confidence = softmax(logits / calibration.temperature, axis=1).max(1)
    return {
        "epochs": result.epochs,
        "training_rows": held_out.rows,
        "held_out_rows": len(targets),
        "held_out_accuracy": float((logits.argmax(1) == targets).mean()),
        "held_out_coverage": float((confidence >= calibration.accept_at).mean()),
        "held_out": held_out.how,
        "held_out_groups": held_out.groups,
        "rows_without_patient": held_out.rows_without_patient,
        "near_duplicates_apart": held_out.near_duplicates_apart,
        **vars(calibration),
        "learned_parameters": sum(values.size for values in result.state.values()),
        "resumed_epochs": result.resumed_epochs,
    }


def _finished_features(prefix: Location) -> dict[str, Any]:
    """What ``embed`` recorded of its run; UsageError unless it has finished."""
    if not (prefix / RUN_FILE).exists():
        raise UsageError(f"{prefix.uri}: holds no features; run medfocus embed into it, or correct the path")
    record = Output(prefix, FEATURES).read_record()
    if "model" in record.get("settings", {}):
        raise UsageError(f"{prefix.uri}: holds predictions, not features; give the prefix that embed wrote")
    if not record.get("finished"):
        raise UsageError(f"{prefix.uri}: embed has not finished here; start it again with the same call")
    return record
