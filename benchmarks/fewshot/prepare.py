"""Turns images into examples, with the project's own ``pack`` and ``embed``.

Commands write masks and tokens; here the views that only other methods need are added, and every view is passed through
the frozen tower.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.fewshot import anchor
from benchmarks.fewshot.examples import Examples
from benchmarks.frozen_clip import load_frozen_clip
from medfocus.pipeline.commands import embed, pack
from medfocus.pipeline.config import Config
from medfocus.pipeline.models import model_files
from medfocus.stages.decode import Decode
from medfocus.stages.embed import Embed
from medfocus.stages.masks import bounding_box, cover, decode_mask, encode_mask, main_piece, square_about
from medfocus.stages.tower import ImageTower
from medfocus.starter.phantoms import write_set

# Used by neither training nor demo, nor by the starter's own benchmark.
SEED = 3_000_000
TRAINING, TEST = 600, 400
# Opacity of the colour over a region, and margin of a crop around a region, relative to the region's side.
_OPACITY, _MARGIN = 0.35, 0.15
_COLOUR = (255, 0, 0)


@dataclass(frozen=True)
class Data:
    """A data set with its features.

    Args:
        name: ``phantoms-hard``, ``phantoms-easy`` or a folder.
        training: examples to draw labels from.
        test: examples to test on.
        training_true: the training examples with true masks instead of SAM2's; None where these are not known.
        test_true: the test examples with true masks.
    """

    name: str
    training: Examples
    test: Examples
    training_true: Examples | None
    test_true: Examples | None


@dataclass(frozen=True)
class Backbone:
    """The frozen models of a configuration.

    Args:
        clip: the open_clip model.
        tokenizer: its tokenizer.
        tower: its image tower, cut as configured.
        image_size: side in pixels of decoded images, which SAM2 and CLIP share.
    """

    clip: Any
    tokenizer: Any
    tower: ImageTower
    image_size: int

    @classmethod
    def of(cls, config: Config) -> "Backbone":
        """Load the models."""
        clip, tokenizer = load_frozen_clip(config)
        size = model_files.image_size(config.segment, config.storage)
        return cls(clip, tokenizer, ImageTower(clip, config.clip.cut).eval(), size)


def prepare(data: str, config: Config, backbone: Backbone, folder: Path) -> Data:
    """Pack and embed a data set, and make its examples.

    Args:
        data: ``phantoms-hard``, ``phantoms-easy``, or a folder with ``train/`` and ``test/``, a folder for each class.
        config: the configuration of the commands.
        backbone: the models of the configuration.
        folder: where shards and features are written.
    """
    preset = data.removeprefix("phantoms-")
    parts: dict[str, Examples] = {}
    true_parts: dict[str, Examples] = {}
    for part, start, count in (("train", 0, TRAINING), ("test", TRAINING, TEST)):
        if preset != data:
            images = folder / part
            write_set(images, count, seed=SEED, preset=preset, size=256, start=start)
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
    """The rows of a prefix of features with all of their views.

    Args:
        features: what ``embed`` wrote.
        source: folder of the images.
        backbone: the frozen models.
        true_masks: folder of masks to take instead of SAM2's.
    """
    table = pq.ParquetDataset(sorted((features / "features").glob("*.parquet"))).read()
    names = table["image_id"].to_pylist()
    if true_masks is None:
        stored_masks = [decode_mask(mask["counts"], *mask["size"]) for mask in table["mask"].to_pylist()]
    else:
        stored_masks = [np.asarray(Image.open(true_masks / name)) > 0 for name in names]
    pixels = _decode([source / name for name in names], backbone.image_size)
    masks = np.stack([cover(mask, *pixels.shape[1:3]) > 0.5 for mask in stored_masks])
    tokens, focus = embed_regions(pixels, masks, backbone.tower)
    tokens["overlay"] = tokens_at_cut(lay_over(pixels, masks), backbone.tower)
    tokens["crop"] = tokens_at_cut(crop(pixels, masks), backbone.tower)
    if true_masks is None:  # what embed wrote is what the comparison is about
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
    """Pass tokens through the frozen blocks above the cut.

    Args:
        tokens: tokens at the cut of each view, float16 [N, L, D].
        tower: the frozen tower.
        imagenet: embeddings of the anchor, float32 [N, 1280].
        **columns: the other fields of ``Examples``.
    """
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
    assert not any(out["error"])  # embed has decoded the same files
    return np.broadcast_to(out["pixels"], (*out["pixels"].shape[:3], 3))


def embed_regions(pixels: np.ndarray, masks: np.ndarray, tower: ImageTower) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tokens of the image and of the region, float16 [N, L, D], and focus, float16 [N, L-1], by the stage ``Embed``.

    The region is the largest piece of the mask.
    """
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
    """Tint the regions of masks, as MedFocusCLIP (arXiv 2501.03839) shows them to CLIP.

    Args:
        pixels: images, uint8 [N, S, S, 3].
        masks: bool [N, S, S].
    """
    tint = np.array(_COLOUR, np.float32)
    tinted = np.where(masks[..., None], (1 - _OPACITY) * pixels + _OPACITY * tint, pixels)
    return tinted.round().astype(np.uint8)


def crop(pixels: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Enlarge the square around each mask, with a margin; the whole image where the mask is empty.

    Args:
        pixels: images, uint8 [N, S, S, 3].
        masks: bool [N, S, S].
    """
    out = np.empty_like(pixels)
    size = pixels.shape[1]
    for index, mask in enumerate(masks):
        left, top, side = square_about(bounding_box(mask), size, _MARGIN)
        box = (left, top, left + side, top + side)
        out[index] = np.asarray(Image.fromarray(pixels[index]).resize((size, size), Image.Resampling.BICUBIC, box))
    return out


@torch.inference_mode()
def tokens_at_cut(pixels: np.ndarray, tower: ImageTower) -> np.ndarray:
    """Tokens at the cut, float16 [N, L, D], of images, uint8 [N, S, S, 3]."""
    parts = [tower.lower(tower.normalise(part)).half() for part in torch.from_numpy(pixels).split(64)]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def _upper(tokens: np.ndarray, tower: ImageTower) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CLS at the cut, the cached keys and values above it, and the embeddings of tokens at the cut."""
    parts = []
    for part in torch.from_numpy(tokens).split(64):
        cache = tower.cache_tokens(part.float())
        parts.append((cache.cls, cache.keys_values, F.normalize(tower.upper(cache), dim=-1)))
    cls, memory, embeddings = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return cls, memory, embeddings


def write_labels(path: Path, draws: dict[str, dict[str, list[str]]]) -> None:
    """Write the ``image_id`` of the labels of each budget and seed, as JSON."""
    path.write_text(json.dumps(draws, indent=1) + "\n")
