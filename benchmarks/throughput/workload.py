"""The shards, weights and model that all programs of the benchmark share, and the stages built from them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.untrained_model import untrained_model
from medfocus.cluster.connect import connected
from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.commands import pack
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.execution.actor import load_embed, load_segment
from medfocus.pipeline.models.model import load_model
from medfocus.stages.batch import Batch
from medfocus.stages.decode import Decode
from medfocus.starter.phantoms import CLASSES, write_set

SEED, ROWS_PER_SHARD = 7_000_000, 16


@dataclass(frozen=True)
class Workload:
    """Shards of phantoms, a model, and the settings of every call, all below one folder.

    Args:
        folder: the folder that ``prepare`` has filled.
    """

    folder: Path

    @property
    def settings(self) -> list[str]:
        """The ``section.key=value`` settings of every call."""
        settings: list[str] = json.loads((self.folder / "settings.json").read_text())
        return settings

    @property
    def config(self) -> Config:
        """The configuration that the settings make."""
        return load_config(None, self.settings)

    @property
    def shards(self) -> Path:
        """Folder of the shards and their manifest."""
        return self.folder / "shards"

    @property
    def model(self) -> Path:
        """Folder of the model."""
        return self.folder / "model"

    def files(self, count: int) -> list[Path]:
        """The first shards: the fewest that hold ``count`` images."""
        return sorted(self.shards.glob("*.parquet"))[: -(-count // ROWS_PER_SHARD)]

    def batches(self, count: int) -> Iterator[Batch]:
        """The rows of the first shards, one batch for each shard, as ``Decode`` takes them."""
        for file in self.files(count):
            table = pq.read_table(file, columns=["image_id", "image", "media_type"])
            yield {name: np.array(table[name].to_pylist(), object) for name in table.column_names}


def prepare(folder: Path, count: int, settings: list[str]) -> Workload:
    """Draw and pack phantoms, and save an untrained model for the weights that the settings name.

    Args:
        folder: where everything is written.
        count: number of phantoms; as many more are drawn as fill the last shard, so that all have as many rows.
        settings: ``section.key=value`` settings of every call, after the benchmark's own.
    """
    own_settings = [f"work={folder / 'work'}", f"pack.rows_per_shard={ROWS_PER_SHARD}", "deid.names=keep"]
    all_settings = [*own_settings, *settings]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(all_settings))
    workload = Workload(folder)
    write_set(folder / "phantoms", -(-count // ROWS_PER_SHARD) * ROWS_PER_SHARD, seed=SEED, preset="easy", size=256)
    with connected(None, None):
        pack.run(workload.config, str(folder / "phantoms" / "images"), str(workload.shards), None)
    untrained_model(workload.config, CLASSES).save(workload.model)
    return workload


def actor_count() -> int:
    """Number of actors with the models that ``score`` starts on this machine."""
    return plan_resources([{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}]).models.processes


class Stages:
    """The project's stages with their models, loaded as its actors load them.

    Args:
        workload: names the weights and the model.
    """

    def __init__(self, workload: Workload):
        config, model = workload.config, load_model(workload.model)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.segment = load_segment(config, device)
        self.embed, self.classify = load_embed(config, device, model.prompts(None))
        self.decode = Decode(size=self.segment.size, max_pixels=config.decode.max_pixels)

    def models(self, decoded: Batch) -> Batch:
        """Add masks and labels to decoded rows."""
        return self.label(self.segment(decoded))

    def label(self, segmented: Batch) -> Batch:
        """Add labels to rows with masks."""
        assert self.classify is not None  # there are prompts
        return self.classify(self.embed(segmented))
