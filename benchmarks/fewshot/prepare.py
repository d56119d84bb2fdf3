"""From images to examples, by the project's own commands: pack, embed, and what they wrote."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import run as execute
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.fewshot import anchor
from benchmarks.fewshot.examples import Examples
from medfocus.pipeline.commands import embed, pack
from medfocus.pipeline.config import Config
from medfocus.pipeline.models import model_files
from medfocus.stages.decode import Decode
from medfocus.stages.embed import Embed
from medfocus.stages.masks import bounding_box, cover, decode_mask, encode_mask, main_piece, square_about
from medfocus.stages.tower import ImageTower
from medfocus.stages.weights import load_clip, load_tokenizer

# Of neither training, demo nor the starter's own benchmark.
SEED = 3_000_000
TRAINING, TEST = 600, 400
# How strongly a region's colour is laid over the image, and how much of its side a crop shows around a region.
_OPACITY, _MARGIN = 0.35, 0.15
_COLOUR = (255, 0, 0)


@dataclass(frozen=True)
class Data:
    """A data set, embedded: examples to draw labels from and to test on; and, where it is known, with true masks."""

    name: str
    training: Examples
    test: Examples
    training_true: Examples | None
    test_true: Examples | None


@dataclass(frozen=True)
class Backbone:
    """The frozen CLIP of a configuration, and the side of the images that it shares with SAM2, in pixels."""

    clip: Any
    tokenizer: Any
    tower: ImageTower
    decoded: int

    @classmethod
    def of(cls, config: Config) -> "Backbone":
        source = model_files.resolve_clip(config.clip, config.storage)
        clip = load_clip(source.model, source.checkpoint, source.preprocess)
        decoded = model_files.image_size(config.segment, config.storage)
        return cls(clip, load_tokenizer(source.model), ImageTower(clip, config.clip.cut).eval(), decoded)


def prepare(data: str, config: Config, backbone: Backbone, folder: Path) -> Data:
    """Make the examples of ``phantoms-hard``, ``phantoms-easy``, or a folder with ``train/`` and ``test/``."""
    preset = data.removeprefix("phantoms-")
    parts: dict[str, Examples] = {}
    true_parts: dict[str, Examples] = {}
    for part, start, count in (("train", 0, TRAINING), ("test", TRAINING, TEST)):
        if preset != data:
            images = folder / part
            draw = ["--start", str(start), "--count", str(count), "--preset", preset, "--seed", str(SEED)]
            execute([sys.executable, "-m", "medfocus.starter.phantoms", str(images), *draw], check=True)
            source, labels, masks = images / "images", str(images / "labels.csv"), images / "masks"
        else:
            source, labels, masks = Path(data) / part, None, None
        pack.run(config, str(source), str(folder / f"{part}-shards"), labels)
        embed.run(config, str(folder / f"{part}-shards"), str(folder / f"{part}-features"))
        parts[part] = _examples(folder / f"{part}-features", source, backbone, None)
        if masks is not None:
            true_parts[part] = _examples(folder / f"{part}-features", source, backbone, masks)
    return Data(data, parts["train"], parts["test"], true_parts.get("train"), true_parts.get("test"))


def _examples(features: Path, source: Path, backbone: Backbone, true_masks: Path | None) -> Examples:
    """The rows of a feature prefix with every view of them; with the true masks, if given, in place of SAM2's."""
    files = sorted((features / "features").glob("*.parquet"))
    table = pq.ParquetDataset(files).read()
    names = table["image_id"].to_pylist()
    if true_masks is None:
        found = [decode_mask(mask["counts"], *mask["size"]) for mask in table["mask"].to_pylist()]
    else:
        found = [np.asarray(Image.open(true_masks / name)) > 0 for name in names]
    pixels = _decode([source / name for name in names], backbone.decoded)
    masks = np.stack([cover(mask, *pixels.shape[1:3]) > 0.5 for mask in found])
    tokens, focus = _embed(pixels, masks, backbone.tower)
    tokens["overlay"] = _lower(lay_over(pixels, masks), backbone.tower)
    tokens["crop"] = _lower(crop(pixels, masks), backbone.tower)
    if true_masks is None:  # what embed itself wrote is what is compared
        tokens["whole"] = _tensors(table, "tokens")
        tokens["masked"] = _tensors(table, "region_tokens")
        focus = _tensors(table, "focus")
    patients = [
        patient or f"image {name}" for patient, name in zip(table["patient_id"].to_pylist(), names, strict=True)
    ]
    return examples(
        tokens,
        backbone.tower,
        anchor.embeddings(pixels) if anchor.available() else None,
        image_id=np.array(names, object),
        label=np.array(table["label"].to_pylist(), object),
        patient=np.array(patients, object),
        focus=focus,
    )


def examples(
    tokens: dict[str, np.ndarray], tower: ImageTower, imagenet: np.ndarray | None = None, **columns: np.ndarray
) -> Examples:
    """Examples of tokens float16 [N, L, D] of each view, taken as far as nothing is learned; and the anchor's."""
    upper = {view: _upper(values, tower) for view, values in tokens.items()}
    cls, memory, embeddings = ({view: parts[index] for view, parts in upper.items()} for index in range(3))
    if imagenet is not None:
        embeddings["imagenet"] = imagenet
    return Examples(cls=cls, memory=memory, embeddings=embeddings, **columns)


def _tensors(table: Any, column: str) -> np.ndarray:
    return table[column].combine_chunks().to_numpy_ndarray()


def _decode(paths: Sequence[Path], size: int) -> np.ndarray:
    """Pixels uint8 [N, S, S, 3] as the pipeline decodes them."""
    media = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
    batch = {
        "image_id": np.array([path.name for path in paths], object),
        "image": np.array([path.read_bytes() for path in paths], object),
        "media_type": np.array([media[path.suffix.lower()] for path in paths], object),
    }
    out = Decode(size=size, max_pixels=10**8)(batch)
    assert not any(out["error"])  # embed has kept them
    return np.broadcast_to(out["pixels"], (*out["pixels"].shape[:3], 3))


def _embed(pixels: np.ndarray, masks: np.ndarray, tower: ImageTower) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Whole and region tokens and focus, by the project's own stage; the best region is the mask's largest piece."""
    count, side = len(pixels), pixels.shape[1]
    batch = {
        "image_id": np.array([str(index) for index in range(count)], object),
        "pixels": pixels,
        "mask_counts": np.array([encode_mask(mask) for mask in masks], object),
        "region_box": np.stack([bounding_box(main_piece(mask)) for mask in masks]),
        "height": np.full(count, side),
        "width": np.full(count, side),
        **{name: np.full(count, "", object) for name in ("stage", "error", "message")},
    }
    out = Embed(tower, region=True, batch_size=32)(batch)
    return {"whole": out["tokens"][:, 0], "masked": out["region_tokens"][:, 0]}, out["focus"][:, 0]


def lay_over(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Images uint8 [N, S, S, 3] with the regions of masks bool [N, S, S] tinted, as MedFocusCLIP shows them to CLIP."""
    tint = np.array(_COLOUR, np.float32)
    laid = np.where(masks[..., None], (1 - _OPACITY) * pixels + _OPACITY * tint, pixels)
    return laid.round().astype(np.uint8)


def crop(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The square about each mask with a margin, uint8 [N, S, S, 3]; all of the image where the mask is empty."""
    out = np.empty_like(pixels)
    size = pixels.shape[1]
    for index, mask in enumerate(masks):
        left, top, side = square_about(bounding_box(mask), size, _MARGIN)
        box = (left, top, left + side, top + side)
        out[index] = np.asarray(Image.fromarray(pixels[index]).resize((size, size), Image.Resampling.BICUBIC, box))
    return out


@torch.inference_mode()
def _lower(pixels: np.ndarray, tower: ImageTower) -> np.ndarray:
    parts = [tower.lower(tower.normalise(part)).half() for part in torch.from_numpy(pixels).split(64)]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def _upper(tokens: np.ndarray, tower: ImageTower) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CLS at the cut, the memory above it and the embeddings of tokens that leave the lower part."""
    made = []
    for part in torch.from_numpy(tokens).split(64):
        remembered = tower.cache_tokens(part.float())
        embedded = F.normalize(tower.upper(remembered), dim=-1)
        made.append((remembered.cls, remembered.keys_values, embedded))
    cls, memory, embeddings = (torch.cat(column).numpy() for column in zip(*made, strict=True))
    return cls, memory, embeddings


def write_labels(path: Path, drawn: dict[str, dict[str, list[str]]]) -> None:
    """Keep which images' labels each budget and seed gave, as JSON."""
    path.write_text(json.dumps(drawn, indent=1) + "\n")
