"""``medfocus train``: prompt tuning over stored features, registered as a model version."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.dataset as pads
import ray
import torch
from ray.data import DataContext
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from scipy.special import softmax

from medfocus.cluster.connect import connected
from medfocus.cluster.resources import Share, training_share
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.data.commit import FEATURES, RUN_FILE, Output, settings_key
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import MedFocusError, UsageError, before_start
from medfocus.pipeline.execution.read import read_features
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.calibration import calibrate
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.registry import Model, check_name, register
from medfocus.pipeline.tracking import runs
from medfocus.pipeline.training.folds import HeldOut, check_classes, split_rows
from medfocus.pipeline.training.loop import Tuning, tune
from medfocus.pipeline.training.neighbours import Neighbours, find_neighbours, read_sketches
from medfocus.stages.prompt_settings import PromptSettings

FOLDER = "training"
# Share of Ray's object memory that features may have and be kept by the workers; larger ones are streamed. What a
# worker keeps of them is some five times as large: keys and values of every block above the cut.
_KEPT_IN_MEMORY = 0.05


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
        config = model_files.settle(foundation.adopt(model_files.settle(config)))
        labels = _read_labels(prefix)
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
            outcome = _fit(config, settings, prefix, folds, key, share, foundation.clip_identity)
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


def hold_out(prefix: Location, labels: dict[str, list[Any]], config: Config) -> tuple[dict[str, int], HeldOut]:
    """The fold of each ``image_id``, and how that was decided, which is also logged.

    Raises:
        UsageError: the labels do not suffice.
    """
    check_classes(labels)
    neighbours = Neighbours()
    if unknown := labels["patient_id"].count(None):
        event("looking for images that may be of one patient", rows=len(labels["label"]), without_patient=unknown)
        sketches = read_sketches(Output(prefix, FEATURES).rows)
        neighbours = find_neighbours(sketches, dict(zip(labels["image_id"], labels["label"], strict=True)))
    folds, held_out = split_rows(labels, neighbours, config.train.folds, config.seed)
    log.log(logging.INFO if held_out.how == "by patient" else logging.WARNING, "%s", held_out.sentence)
    return folds, held_out


def _finished_features(prefix: Location) -> dict[str, Any]:
    if not (prefix / RUN_FILE).exists():
        raise UsageError(f"{prefix.uri}: holds no features; run medfocus embed into it, or correct the path")
    record = Output(prefix, FEATURES).read_record()
    if "model" in record.get("settings", {}):
        raise UsageError(f"{prefix.uri}: holds predictions, not features; give the prefix that embed wrote")
    if not record.get("finished"):
        raise UsageError(f"{prefix.uri}: embed has not finished here; start it again with the same call")
    return record


def _read_labels(prefix: Location) -> dict[str, list[Any]]:
    """Identity, label and patient of every feature row, without its tokens."""
    folder = Output(prefix, FEATURES).rows
    names = folder.files(".parquet")
    if not names:
        raise UsageError(f"{prefix.uri}: embed found no labelled image; pack with labels and embed again")
    dataset = pads.dataset([f"{folder.path}/{name}" for name in names], filesystem=folder.filesystem, format="parquet")
    return dataset.to_table(columns=["image_id", "label", "patient_id"]).to_pydict()


def _fit(
    config: Config,
    settings: PromptSettings,
    prefix: Location,
    folds: Mapping[str, int],
    key: str,
    share: Share,
    clip_identity: str,
) -> dict[str, Any]:
    """Train on Ray; returns the state, history and held-out logits that rank 0 ended with."""
    kept = _fits(prefix)
    parts = max(folds.values()) + 1 if kept else 0
    tuning = Tuning(config, settings, clip_identity, threads=share.threads, rows=len(folds), folds=parts)
    trainer = TorchTrainer(
        tune,
        train_loop_config={"tuning": tuning},
        datasets=_datasets(prefix, settings, folds, kept),
        dataset_config=DataConfig(datasets_to_split=[] if kept else ["training"]),
        scaling_config=ScalingConfig(
            num_workers=share.processes,
            use_gpu=share.gpus > 0,
            resources_per_worker={"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {}),
        ),
        run_config=RunConfig(
            name=key,
            storage_path=(prefix / FOLDER).path,
            storage_filesystem=prefix.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise MedFocusError(
            f"training failed: {reason(error)}; start it again to go on at the last checkpoint"
        ) from error
    outcome = result.return_value
    return outcome | {"state": {name: torch.tensor(value) for name, value in outcome["state"].items()}}


def _fits(prefix: Location) -> bool:
    """Whether the features are small beside the memory that Ray keeps for objects."""
    folder = Output(prefix, FEATURES).rows
    files = [(folder / name).path for name in folder.files(".parquet")]
    size = sum(info.size for info in folder.filesystem.get_file_info(files))
    return size < _KEPT_IN_MEMORY * ray.cluster_resources().get("object_store_memory", 0)


def _datasets(
    prefix: Location, settings: PromptSettings, folds: Mapping[str, int], kept: bool
) -> dict[str, ray.data.Dataset]:
    """All rows for every worker where they are kept in memory; else those to learn from, and the first fold."""
    folder = Output(prefix, FEATURES).rows
    names = folder.files(".parquet")
    everything = frozenset(folds.values())
    parts = {"rows": everything} if kept else {"training": everything - {0}, "held_out": frozenset({0})}
    DataContext.get_current().execution_options.preserve_order = True  # the same seed sees the same batches
    datasets = {}
    for part, wanted in parts.items():
        files = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
        datasets[part] = files.map_batches(
            read_features,
            batch_size=1,
            num_cpus=0.25,
            fn_kwargs={"folder": folder, "settings": settings, "folds": folds, "wanted": wanted},
        )
    return datasets
