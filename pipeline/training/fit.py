"""Training on Ray: the workers, their data, and what they end with."""

from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.data import DataContext
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from medfocus.cluster.resources import Share
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.data.commit import FEATURES, Output
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.training.features import read_features
from medfocus.pipeline.training.loop import TuningSpec, tune
from medfocus.stages.prompt_settings import PromptSettings

FOLDER = "training"
# Share of Ray's object memory that features may have and be kept by the workers; larger ones are streamed. What a
# worker keeps of them is some five times as large: keys and values of every block above the cut.
_KEPT_IN_MEMORY = 0.05


def fit(
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
    tuning = TuningSpec(config, settings, clip_identity, threads=share.threads, rows=len(folds), folds=parts)
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
