"""What every way is given: the same shards, weights and model; and the stages that these make."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.untrained import untrained
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
    """Shards of phantoms, a model, and the settings of every call, all below one folder."""

    folder: Path

    @property
    def settings(self) -> list[str]:
        given: list[str] = json.loads((self.folder / "settings.json").read_text())
        return given

    @property
    def config(self) -> Config:
        return load_config(None, self.settings)

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def files(self, count: int) -> list[Path]:
        """The first shards, so many that they hold ``count`` images (or few more)."""
        return sorted(self.shards.glob("*.parquet"))[: -(-count // ROWS_PER_SHARD)]

    def batches(self, count: int) -> Iterator[Batch]:
        """The rows of the first shards, a batch a shard, as ``Decode`` takes them."""
        for file in self.files(count):
            table = pq.read_table(file, columns=["image_id", "image", "media_type"])
            yield {name: np.array(table[name].to_pylist(), object) for name in table.column_names}


def prepare(folder: Path, count: int, settings: list[str]) -> Workload:
    """Draw and pack the phantoms, and save a model for the weights that the settings name."""
    given = [f"work={folder / 'work'}", f"pack.rows_per_shard={ROWS_PER_SHARD}", *settings]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(given))
    work = Workload(folder)
    write_set(folder / "phantoms", count, seed=SEED, preset="easy", size=256)
    with connected(None, None):
        pack.run(work.config, str(folder / "phantoms" / "images"), str(work.shards), None)
    untrained(work.config, CLASSES).save(work.model)
    return work


def actors() -> int:
    """Processes that ``score`` has for the models on this machine."""
    return plan_resources({"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}).models.processes


class Stages:
    """The project's stages with their models, as its actors load them, on all of this process's threads."""

    def __init__(self, work: Workload):
        config, model = work.config, load_model(work.model)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.segment = load_segment(config, device)
        self.embed, self.classify = load_embed(config, device, model.prompts(None))
        self.decode = Decode(size=self.segment.size, max_pixels=config.decode.max_pixels)

    def models(self, decoded: Batch) -> Batch:
        """Decoded rows to masks and labels."""
        return self.label(self.segment(decoded))

    def label(self, segmented: Batch) -> Batch:
        """Rows with masks to labels."""
        assert self.classify is not None  # there are prompts
        return self.classify(self.embed(segmented))
