"""Training on Ray: starts the workers, gives them their rows, and returns their result."""

from collections.abc import Mapping

import ray
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from medfocus.cluster.data_context import rows_in_order
from medfocus.cluster.resources import Share
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.data.commit import FEATURES, Output
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.training.features import read_features
from medfocus.pipeline.training.loop import TuningSpec, tune
from medfocus.pipeline.training.state import TrainingResult
from medfocus.stages.prompt_settings import PromptSettings

FOLDER = "training"
# Features up to this share of Ray's object memory are kept in memory by the workers; larger ones are streamed. A worker
# keeps the keys and values of every block above the cut, which are about five times as large as the features.
_KEPT_IN_MEMORY = 0.05


@rows_in_order()  # the same seed gives the same batches
def fit(
    config: Config,
    settings: PromptSettings,
    prefix: Location,
    folds: Mapping[str, int],
    key: str,
    share: Share,
    clip_identity: str,
) -> TrainingResult:
    """Train on Ray; a training that was stopped continues from its last checkpoint.

    Args:
        config: configuration with resolved paths.
        settings: settings of the prompts.
        prefix: prefix of the features; checkpoints are kept below it while the training runs.
        folds: fold of each ``image_id``.
        key: name of the training, which finds its checkpoints again.
        share: processes and resources of the training.
        clip_identity: identity of the CLIP that made the features.

    Returns:
        The result of rank 0.

    Raises:
        MedFocusError: the training failed more often than it may be retried.
    """
    kept = _fit_in_memory(prefix)
    fold_count = max(folds.values()) + 1 if kept else 0
    spec = TuningSpec(config, settings, clip_identity, threads=share.threads, rows=len(folds), folds=fold_count)
    trainer = TorchTrainer(
        tune,
        train_loop_config={"tuning": spec},
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
            storage_filesystem=prefix.arrow_filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise MedFocusError(
            f"training failed: {reason(error)}; start it again to go on at the last checkpoint"
        ) from error


def _fit_in_memory(prefix: Location) -> bool:
    """Whether the features are small enough, beside the memory that Ray keeps for objects, to be kept in memory."""
    size = sum(entry.size for entry in Output(prefix, FEATURES).rows.walk(lambda name: False))
    return size < _KEPT_IN_MEMORY * ray.cluster_resources().get("object_store_memory", 0)


def _datasets(
    prefix: Location, settings: PromptSettings, folds: Mapping[str, int], kept: bool
) -> dict[str, ray.data.Dataset]:
    """Datasets of feature rows: all rows if they are kept in memory, else training rows and those of the first fold."""
    folder = Output(prefix, FEATURES).rows
    names = folder.files(".parquet")
    all_folds = frozenset(folds.values())
    parts = {"rows": all_folds} if kept else {"training": all_folds - {0}, "held_out": frozenset({0})}
    datasets = {}
    for part, part_folds in parts.items():
        files = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
        datasets[part] = files.map_batches(
            read_features,
            batch_size=1,
            num_cpus=0.25,
            fn_kwargs={"folder": folder, "settings": settings, "folds": folds, "wanted": part_folds},
        )
    return datasets
