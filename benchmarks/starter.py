"""Quality of the starter weights, on phantoms that no training has seen.

Usage: ``python -m benchmarks.starter``

Prints the table of the starter's model card: IoU of clicks, cover of the region finder's masks, and zero-shot accuracy
of CLIP. Each row with a threshold says ``met`` or ``MISSED``; the exit code is 1 where one is missed.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from benchmarks.frozen_clip import load_frozen_clip
from medfocus.pipeline.config import Config, SegmentSection
from medfocus.pipeline.models import model_files
from medfocus.stages.batched_sam2 import decode_prompts, encode_images
from medfocus.stages.masks import decode_mask, main_piece
from medfocus.stages.regions import OUTLINE
from medfocus.stages.segment import Segment
from medfocus.stages.tower import ImageTower
from medfocus.stages.weights import load_sam2
from medfocus.starter.anatomy import MODALITIES, ORGANS
from medfocus.starter.phantoms import CLASSES, MODALITY_WORDS, PRESETS, Phantom, draw

# Used by neither training nor demo, nor by the choice of the region finder's settings (2,000,000).
SEED = 2_500_000
IMAGES, GENERATOR_IMAGES = 200, 24
# Largest share of an image that a mask may keep.
MAX_KEPT = 0.35


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        figure: what is measured.
        value: the measured value, as text.
        threshold: what the value is compared with, as text.
        met: whether the value reaches the threshold; None where there is none.
    """

    figure: str
    value: str
    threshold: str = ""
    met: bool | None = None


def at_least(figure: str, value: float, least: float) -> Row:
    """A row whose value must not be below a threshold."""
    return Row(figure, f"{value:.3f}", f">= {least}", value >= least)


def at_most(figure: str, value: float, most: float) -> Row:
    """A row whose value must not be above a threshold."""
    return Row(figure, f"{value:.3f}", f"<= {most}", value <= most)


def held_out(preset: str, size: int) -> list[Phantom]:
    """Draw the phantoms of a preset, with a side in pixels, which is the one that SAM2 was trained with."""
    return [draw(index, seed=SEED, preset=preset, size=size) for index in range(IMAGES)]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks, bool [h, w]; 0 where both are empty."""
    return float((one & other).sum() / max((one | other).sum(), 1))


def centre(mask: np.ndarray) -> list[float]:
    """Centroid of a mask, bool [h, w], as x and y in pixels."""
    return [float(np.mean(np.nonzero(mask)[axis])) + 0.5 for axis in (1, 0)]


def random_point(mask: np.ndarray) -> list[float]:
    """A pixel of a mask, drawn uniformly, as x and y in pixels; the same for the same mask."""
    rows, columns = np.nonzero(mask)
    pixel = np.random.default_rng(len(rows)).integers(len(rows))
    return [columns[pixel] + 0.5, rows[pixel] + 0.5]


@torch.inference_mode()
def one_click(
    model: Any,
    phantoms: Sequence[Phantom],
    place: Callable[[np.ndarray], list[float]] = centre,
    *,
    tidy: bool = True,
) -> float:
    """Mean IoU of a lesion and the mask that SAM2 ranks best for a click in it.

    Args:
        model: SAM2.
        phantoms: images of the side that the model takes, with their lesions.
        place: chooses the click, x and y in pixels, from a lesion's mask, bool [h, w].
        tidy: treat the mask as the region finder does: one piece, without holes, cut at ``OUTLINE``.
    """
    overlaps = []
    for phantom in phantoms:
        features = encode_images(model, torch.from_numpy(phantom.image[None, :, :, None]))
        places = [place(mask) for mask in phantom.lesions]
        points = torch.tensor(places, dtype=torch.float32)[:, None] * (model.image_size / phantom.image.shape[0])
        labels = torch.ones(len(points), 1, dtype=torch.int)
        logits, scores = decode_prompts(model, features.repeat(len(points)), points, labels)
        full = torch.nn.functional.interpolate(logits, phantom.image.shape, mode="bilinear", align_corners=False)
        best = scores.argmax(1).tolist()
        for number, (lesion, (x, y)) in enumerate(zip(phantom.lesions, places, strict=True)):
            mask = full[number, best[number]].numpy()
            overlaps.append(iou(main_piece(mask > OUTLINE, (int(y), int(x))) if tidy else mask > 0, lesion))
    return float(np.mean(overlaps))


def stage_batch(phantoms: Sequence[Phantom]) -> dict:
    """A batch of phantoms as ``Decode`` gives it to ``Segment``."""
    count, size = len(phantoms), phantoms[0].image.shape[0]
    return {
        "image_id": np.array([str(index) for index in range(count)], object),
        "pixels": np.stack([phantom.image for phantom in phantoms])[..., None],
        "height": np.full(count, size),
        "width": np.full(count, size),
        **{name: np.full(count, "", object) for name in ("stage", "error", "message")},
    }


@dataclass(frozen=True)
class Cover:
    """How masks cover lesions.

    A mask that keeps the whole image covers every lesion, but locates none.

    Args:
        covered: share of images in which the mask covers at least 80 % of the lesions.
        located: share of images in which it also keeps at most ``MAX_KEPT`` of the image.
        kept: mean share of an image that its mask keeps.
    """

    covered: float
    located: float
    kept: float


def covering(masks: Sequence[np.ndarray], lesions: Sequence[np.ndarray]) -> Cover:
    """How masks cover lesions; both bool [h, w] for each image."""
    covered = [(mask & lesion).sum() >= 0.8 * lesion.sum() for mask, lesion in zip(masks, lesions, strict=True)]
    kept = np.array([mask.mean() for mask in masks])
    return Cover(float(np.mean(covered)), float(np.mean(covered & (kept <= MAX_KEPT))), float(kept.mean()))


def region_finder(model: Any, phantoms: Sequence[Phantom], points: torch.Tensor | None = None) -> list[np.ndarray]:
    """Focus masks of the project's region finder with its default settings.

    Args:
        model: SAM2.
        phantoms: images of one size.
        points: clicks float32 [N, 2], x and y in pixels; the region finder's grid if None.

    Returns:
        A mask, bool [h, w], for each image.
    """
    segment = Segment(model, SegmentSection().settings)
    if points is not None:
        segment.points = points
    out = segment(stage_batch(phantoms))
    return [decode_mask(counts, *phantoms[0].image.shape) for counts in out["mask_counts"]]


def fit_to(predictor: Any, size: int) -> None:
    """Set the sizes of the predictor's feature maps for images of a side in pixels; its own are for 1024 pixels."""
    side = size // 4
    predictor._bb_feat_sizes = [(side, side), (side // 2, side // 2), (side // 4, side // 4)]


def automatic_generator(model: Any) -> Any:
    """SAM2AutomaticMaskGenerator of the sam2 package, with its default settings."""
    register_suppression()
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    generator = SAM2AutomaticMaskGenerator(model)
    fit_to(generator.predictor, model.image_size)
    return generator


def best_union(entries: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> np.ndarray:
    """Union of a generator's best masks, as many as the region finder takes, by predicted IoU times stability.

    Args:
        entries: what the generator gives for an image, a mapping for each mask.
        shape: height and width of the image.

    Returns:
        A mask, bool [h, w]; the whole image where there is no mask.
    """
    best = sorted(entries, key=lambda entry: -entry["predicted_iou"] * entry["stability_score"])
    union = np.zeros(shape, bool)
    for entry in best[: SegmentSection().regions]:
        union |= entry["segmentation"]
    return union if union.any() else np.ones_like(union)


def generator_masks(model: Any, phantoms: Sequence[Phantom]) -> tuple[list[np.ndarray], float]:
    """Masks of the generator.

    Returns:
        The union of the best masks of each image, bool [h, w]; and the mean over lesions of the largest IoU of a lesion
        with a mask.
    """
    generator = automatic_generator(model)
    unions, fits = [], []
    for phantom in phantoms:
        entries = generator.generate(np.repeat(phantom.image[:, :, None], 3, axis=2))
        unions.append(best_union(entries, phantom.image.shape))
        masks = [entry["segmentation"] for entry in entries]
        fits += [max((iou(mask, lesion) for mask in masks), default=0.0) for lesion in phantom.lesions]
    return unions, float(np.mean(fits))


def register_suppression() -> None:
    """Register a plain ``torchvision::nms`` where the compiled one is missing; only the generator needs it."""
    from medfocus.stages import torchvision_ops  # before torchvision

    # isort: split
    import torchvision.extension

    if torchvision_ops.library is None or torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        return

    torchvision_ops.library.impl("nms", _suppress, "CPU")
    torchvision.extension._has_ops = lambda: True  # the only operator that is called is there now


def _suppress(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    order = scores.argsort(descending=True).tolist()
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in order:
        if kept:
            others = boxes[kept]
            low, high = torch.maximum(others[:, :2], boxes[index, :2]), torch.minimum(others[:, 2:], boxes[index, 2:])
            shared = (high - low).clamp(min=0).prod(1)
            if (shared / (area[kept] + area[index] - shared) > threshold).any():
                continue
        kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


@torch.inference_mode()
def zero_shot(
    clip: Any,
    tokenizer: Any,
    phantoms: Sequence[Phantom],
    sentences: Mapping[str, Sequence[str]],
    truth: Callable[[Phantom], str],
) -> float:
    """Accuracy of zero-shot classification with averaged sentences (arXiv 2103.00020, section 3.1.4).

    Args:
        clip: the open_clip model.
        tokenizer: its tokenizer.
        phantoms: images of one size.
        sentences: the sentences of each class.
        truth: gives the class of a phantom.
    """
    tower = ImageTower(clip, 1)
    pixels = torch.from_numpy(np.stack([phantom.image for phantom in phantoms])[..., None])
    parts = [clip.encode_image(tower.normalise(part), normalize=True) for part in pixels.split(64)]
    text = [clip.encode_text(tokenizer(list(forms)), normalize=True).mean(0) for forms in sentences.values()]
    names = list(sentences)
    best = (torch.cat(parts) @ torch.nn.functional.normalize(torch.stack(text), dim=-1).T).argmax(1).tolist()
    return float(np.mean([names[index] == truth(phantom) for index, phantom in zip(best, phantoms, strict=True)]))


def sam2_rows(config: Config, model: Any, phantoms: Sequence[Phantom]) -> list[Row]:
    """The rows of SAM2, of the region finder, and of the package's generator."""
    rows = [
        at_least("SAM2: IoU of one click at a lesion's centre", one_click(model, phantoms), 0.80),
        Row(
            "the same, as the decoder gives it, with specks and holes", f"{one_click(model, phantoms, tidy=False):.3f}"
        ),
        Row("SAM2: IoU of one click at a random point of a lesion", f"{one_click(model, phantoms, random_point):.3f}"),
    ]
    lesions = [np.asarray(phantom.lesions.any(0)) for phantom in phantoms]
    regions = covering(region_finder(model, phantoms), lesions)
    rows += [
        at_least("region finder: images whose lesions are covered by 80 %", regions.covered, 0.90),
        at_most("region finder: share of the image kept", regions.kept, MAX_KEPT),
    ]
    grid = config.segment.points_per_side**2
    points = torch.from_numpy(np.random.default_rng(SEED).uniform(0, model.image_size, (grid, 2)).astype(np.float32))
    at_random = covering(region_finder(model, phantoms, points), lesions)
    rows.append(Row(f"{grid} random points: covered, kept", f"{at_random.covered:.3f}, {at_random.kept:.3f}"))
    few = phantoms[:GENERATOR_IMAGES]
    unions, fit = generator_masks(model, few)
    cover = covering(unions, lesions[: len(few)])
    return [
        *rows,
        Row(f"SAM2AutomaticMaskGenerator, {len(few)} images: covered, kept", f"{cover.covered:.3f}, {cover.kept:.3f}"),
        Row("SAM2AutomaticMaskGenerator: IoU of the mask that fits a lesion best", f"{fit:.3f}"),
    ]


def clip_rows(config: Config, easy: Sequence[Phantom], hard: Sequence[Phantom]) -> list[Row]:
    """The rows of CLIP's zero-shot accuracy."""
    clip, tokenizer = load_frozen_clip(config)
    words = [word for name in MODALITIES for word in MODALITY_WORDS[name]]
    modalities = {
        name: [f"a {word} of the {organ}" for word in MODALITY_WORDS[name] for organ in ORGANS] for name in MODALITIES
    }
    organs = {organ: [f"a {word} of the {organ}" for word in words] for organ in ORGANS}
    kinds = {name: [f"a picture showing a {name}"] for name in CLASSES}

    def accuracy(phantoms: Sequence[Phantom], sentences: Mapping[str, Sequence[str]], attribute: str) -> float:
        return zero_shot(clip, tokenizer, phantoms, sentences, attrgetter(attribute))

    of_hard = accuracy(hard, kinds, "label")
    return [
        at_least("CLIP zero-shot: modality", accuracy([*easy, *hard], modalities, "modality"), 0.95),
        at_least("CLIP zero-shot: organ", accuracy([*easy, *hard], organs, "organ"), 0.90),
        at_least("CLIP zero-shot: lesion kind, easy", accuracy(easy, kinds, "label"), 0.6),
        Row("CLIP zero-shot: lesion kind, hard", f"{of_hard:.3f}", "< 0.6", of_hard < 0.6),
    ]


def measure() -> list[Row]:
    """All rows of the table."""
    config = Config()
    source = model_files.resolve_sam2(config.segment, config.storage)
    sam2 = load_sam2(source.model, source.checkpoint)
    phantoms = {preset: held_out(preset, sam2.image_size) for preset in PRESETS}
    mixed = [phantom for pair in zip(*phantoms.values(), strict=True) for phantom in pair][:IMAGES]
    return [*sam2_rows(config, sam2, mixed), *clip_rows(config, phantoms["easy"], phantoms["hard"])]


def main() -> int:
    """Print the table; 1 where a threshold is missed."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.starter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = measure()
    print("| figure | value | threshold | |\n|---|---|---|---|")
    for row in rows:
        verdict = "" if row.met is None else "met" if row.met else "MISSED"
        print(f"| {row.figure} | {row.value} | {row.threshold} | {verdict} |")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
