"""What every way is given: the same shards, weights and model; and the stages that these make."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.untrained import untrained
from cluster.connect import connected
from pipeline import checkpoints, pack
from pipeline.config import Config, load_config
from pipeline.models import load_model
from stages.batch import Batch
from stages.classify import Classify
from stages.decode import Decode
from stages.embed import Embed
from stages.prompted_clip import PromptedCLIP
from stages.segment import Segment
from stages.tower import ImageTower
from stages.weights import load_clip, load_sam2, load_tokenizer, sam2_image_size
from starter.phantoms import CLASSES, write_set

SEED, ROWS_PER_SHARD = 7_000_000, 16


@dataclass(frozen=True)
class Work:
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


def prepare(folder: Path, count: int, settings: list[str]) -> Work:
    """Draw and pack the phantoms, and save a model for the weights that the settings name."""
    given = [f"work={folder / 'work'}", f"pack.rows_per_shard={ROWS_PER_SHARD}", *settings]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(given))
    work = Work(folder)
    write_set(folder / "phantoms", count, seed=SEED, preset="easy", size=256)
    with connected(None, None):
        pack.run(work.config, str(folder / "phantoms" / "images"), str(work.shards), None)
    untrained(work.config, CLASSES).save(work.model)
    return work


class Stages:
    """The project's stages with their models, on all of this process's threads."""

    def __init__(self, work: Work):
        config, model = work.config, load_model(work.model)
        sam2, clip = (
            checkpoints.resolve_sam2(config.segment, config.storage),
            checkpoints.resolve_clip(config.clip, config.storage),
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.sam2 = load_sam2(sam2.model, sam2.checkpoint, device=device)
        self.clip = load_clip(clip.model, clip.checkpoint, clip.preprocess, device=device)
        self.tokenizer = load_tokenizer(clip.model)
        self.options: dict[str, Any] = config.segment.model_dump(exclude={"model", "weights", "sha256"})
        self.decode = Decode(size=sam2_image_size(sam2.model), max_pixels=config.decode.max_pixels)
        self.segment = Segment(self.sam2, **self.options)
        tower = ImageTower(self.clip, config.clip.cut)
        self.embed = Embed(tower, region=model.settings.uses_region, batch_size=config.clip.batch_size)
        prompted = PromptedCLIP(self.clip, self.tokenizer, model.settings).to(device)
        prompted.load_learned(model.state)
        self.classify = Classify(prompted, **vars(model.calibration), batch_size=config.clip.batch_size)

    def models(self, decoded: Batch) -> Batch:
        """Decoded rows to masks and labels."""
        return self.classify(self.embed(self.segment(decoded)))
