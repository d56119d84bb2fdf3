"""``medfocus train``: prompt tuning over stored features, registered as a model version."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import ray
import torch
from ray.data import DataContext
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from sklearn.model_selection import StratifiedGroupKFold

from cluster.connect import connected
from cluster.resources import Share, training_share
from pipeline import tracking
from pipeline.commit import FEATURES, RUN_FILE, Output, settings_key
from pipeline.config import Config
from pipeline.errors import MedFocusError, UsageError, before_start
from pipeline.logs import event
from pipeline.models import Foundation, Model, register
from pipeline.reading import read_features
from pipeline.storage import Location, locate
from pipeline.training_loop import Tuning, tune
from stages.prompt_settings import PromptSettings

FOLDER = "training"
# Share of Ray's object memory that features may have and be kept by the workers; larger ones are streamed.
_KEPT_IN_MEMORY = 0.1


def run(config: Config, features: str, name: str) -> dict[str, Any]:
    """Tune prompts on the features and register them; a run that was stopped goes on at its last checkpoint.

    Args:
        config: ``train`` and ``model``; the sections the features were made with are taken from them.
        features: prefix that ``embed`` has finished.
        name: registered model.

    Raises:
        UsageError: the features are not finished, or the labels do not suffice.
    """
    with before_start():
        prefix = locate(features, config.storage)
        record = _finished_features(prefix)
        foundation = Foundation(**record["settings"]["foundation"])
        if config.model.focus in ("masked_image", "both") and not foundation.region:
            raise UsageError(
                f"{prefix.uri}: made without masked images, which model.focus={config.model.focus} needs; embed again"
            )
        config = foundation.adopt(config)
        labels = _read_labels(prefix)
        validation = split(labels, config.train.validation_share, config.seed)
        if len(labels["label"]) - len(validation) < config.train.workers:
            raise UsageError(
                f"train.workers is {config.train.workers}, more than the"
                f" {len(labels['label']) - len(validation)} training rows; set it lower or label more images"
            )
    settings = PromptSettings(
        classes=tuple(sorted(set(labels["label"]))), cut=config.clip.cut, **config.model.model_dump()
    )
    key = settings_key(
        {"foundation": vars(foundation), "model": settings.to_json(), "train": config.train.model_dump()}
        | {"seed": config.seed, "rows": sorted(labels["image_id"])}
    )[:16]
    progress_file = prefix / FOLDER / f"{key}.json"
    resume = progress_file.read_json()["mlflow_run_id"] if progress_file.exists() else None
    with tracking.run("train", config, resume=resume) as active:
        progress_file.write_json({"mlflow_run_id": active.info.run_id})
        tracking.log_dataset("features", record["digest"], "train")
        with connected(config.cluster.address, config.cluster.cpus) as resources:
            share = training_share(resources, config.train.workers)
            outcome = _fit(config, settings, prefix, validation, key, share)
        tracking.log_history(outcome["history"])
        model_uri = register(Model(settings, outcome["state"], foundation), name, active.info.run_id)
        (prefix / FOLDER / key).delete()  # the checkpoints: the model is in the registry
        progress_file.delete()
        summary = {
            "epochs": len(outcome["history"]),
            "best_epoch": outcome["best_epoch"],
            "validation_loss": outcome["best_loss"],
            "validation_accuracy": outcome["history"][outcome["best_epoch"]]["validation_accuracy"],
            "training_rows": len(labels["label"]) - len(validation),
            "validation_rows": len(validation),
            "learned_parameters": sum(value.numel() for value in outcome["state"].values()),
            "resumed_epochs": outcome["resumed_epochs"],
        }
        tracking.log_metrics(summary)
        event("trained", **summary, model=model_uri)
        return summary | {"model_uri": model_uri, "mlflow_run_id": active.info.run_id}


def split(labels: dict[str, list[Any]], share: float, seed: int) -> frozenset[str]:
    """The ``image_id`` of the validation rows: no patient on both sides, every class on both.

    Args:
        labels: ``image_id``, ``label`` and ``patient_id`` (None: the image is its own patient), a list each.
        share: of the rows that validation should get, about.
        seed: of the choice.

    Raises:
        UsageError: a class is too small to be on both sides.
    """
    classes = np.array(labels["label"], dtype=object)
    # The prefix keeps an image that is its own patient apart from a patient of the same name.
    patients = np.array(
        [
            f"patient {patient}" if patient is not None else f"image {image}"
            for image, patient in zip(labels["image_id"], labels["patient_id"], strict=True)
        ],
        dtype=object,
    )
    counts = Counter(classes)
    if len(counts) < 2:
        raise UsageError(f"the features hold {len(counts)} class; training needs two or more, label more images")
    for label, count in sorted(counts.items()):
        if count < 2:
            raise UsageError(f"class {label} has one example; training needs two or more, add some or drop the class")
        if len(set(patients[classes == label])) < 2:
            raise UsageError(f"class {label} comes from one patient; validation needs another one, add some")
    folds = min(max(2, round(1 / share)), min(len(set(patients[classes == label])) for label in counts))
    everyone = set(counts)
    for attempt in range(20):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + attempt)
        for training, validation in splitter.split(classes, classes, patients):
            if set(classes[training]) == everyone == set(classes[validation]):
                return frozenset(np.array(labels["image_id"], dtype=object)[validation])
    raise UsageError("no split puts every class on both sides without sharing a patient; add patients to small classes")


def _finished_features(prefix: Location) -> dict[str, Any]:
    if not (prefix / RUN_FILE).exists():
        raise UsageError(f"{prefix.uri}: holds no features; run medfocus embed into it, or correct the path")
    record = (prefix / RUN_FILE).read_json()
    if "max_pixels" not in record["settings"] or "model" in record["settings"]:
        raise UsageError(f"{prefix.uri}: holds predictions, not features; give the prefix that embed wrote")
    if not record["finished"]:
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
    validation: frozenset[str],
    key: str,
    share: Share,
) -> dict[str, Any]:
    """Train on Ray; returns the state, history and best epoch that rank 0 ended with."""
    tuning = Tuning(config=config, settings=settings, threads=share.threads, keep=_fits(prefix))
    trainer = TorchTrainer(
        tune,
        train_loop_config={"tuning": tuning},
        datasets=_datasets(prefix, settings, validation),
        dataset_config=DataConfig(datasets_to_split=["training"]),
        scaling_config=ScalingConfig(
            num_workers=share.actors,
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
        reason = str(error).strip().splitlines()[-1][:300]
        raise MedFocusError(f"training failed: {reason}; start it again to go on at the last checkpoint") from error
    outcome = result.return_value
    return outcome | {"state": {name: torch.tensor(value) for name, value in outcome["state"].items()}}


def _fits(prefix: Location) -> bool:
    """Whether the features are small beside the memory that Ray keeps for objects."""
    folder = Output(prefix, FEATURES).rows
    files = [(folder / name).path for name in folder.files(".parquet")]
    size = sum(info.size for info in folder.filesystem.get_file_info(files))
    return size < _KEPT_IN_MEMORY * ray.cluster_resources().get("object_store_memory", 0)


def _datasets(prefix: Location, settings: PromptSettings, validation: frozenset[str]) -> dict[str, ray.data.Dataset]:
    folder = Output(prefix, FEATURES).rows
    names = folder.files(".parquet")
    DataContext.get_current().execution_options.preserve_order = True  # the same seed sees the same batches
    datasets = {}
    for part, wanted in (("training", False), ("validation", True)):
        files = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
        datasets[part] = files.map_batches(
            read_features,
            batch_size=1,
            num_cpus=0.25,
            fn_kwargs={"folder": folder, "settings": settings, "validation": validation, "wanted": wanted},
        )
    return datasets
