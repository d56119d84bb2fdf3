"""``python -m benchmarks.starter``: what the shipped starter weights can do, on phantoms no training has seen.

Prints the table of the starter's card and exits 1 where a threshold is missed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medfocus.pipeline.config import Config, SegmentSection
from medfocus.pipeline.models import model_files
from medfocus.stages.batched_sam2 import decode_prompts, encode_images
from medfocus.stages.masks import decode_mask, main_piece
from medfocus.stages.regions import OUTLINE
from medfocus.stages.segment import Segment
from medfocus.stages.tower import ImageTower
from medfocus.stages.weights import load_clip, load_sam2, load_tokenizer
from medfocus.starter.anatomy import MODALITIES, ORGANS
from medfocus.starter.phantoms import CLASSES, MODALITY_WORDS, PRESETS, Phantom, draw

# A seed that neither training nor the demo uses, nor the choice of the region finder's settings (2,000,000).
SEED = 2_500_000
IMAGES, IMAGES_OF_THE_GENERATOR = 200, 24
# Share of an image that masks may keep.
MOST_KEPT = 0.35


@dataclass(frozen=True)
class Row:
    """One line of the table; ``met`` is None where no threshold is set."""

    what: str
    value: str
    threshold: str = ""
    met: bool | None = None


def at_least(what: str, value: float, least: float) -> Row:
    return Row(what, f"{value:.3f}", f">= {least}", value >= least)


def at_most(what: str, value: float, most: float) -> Row:
    return Row(what, f"{value:.3f}", f"<= {most}", value <= most)


def held_out(preset: str, size: int) -> list[Phantom]:
    """Phantoms as large as SAM2 takes them, as it was trained."""
    return [draw(index, seed=SEED, preset=preset, size=size) for index in range(IMAGES)]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def centre(mask: np.ndarray) -> list[float]:
    return [float(np.mean(np.nonzero(mask)[axis])) + 0.5 for axis in (1, 0)]


def somewhere(mask: np.ndarray) -> list[float]:
    """A point of the mask, each as likely, the same for the same mask."""
    rows, columns = np.nonzero(mask)
    chosen = np.random.default_rng(len(rows)).integers(len(rows))
    return [columns[chosen] + 0.5, rows[chosen] + 0.5]


@torch.inference_mode()
def one_click(
    model: Any,
    phantoms: Sequence[Phantom],
    place: Callable[[np.ndarray], list[float]] = centre,
    *,
    tidy: bool = True,
) -> float:
    """Mean IoU of the mask SAM2 itself ranks best for a click in each lesion.

    A tidy one is as the region finder has it: in one piece, without holes, with its outline at the same logit.
    """
    found = []
    for phantom in phantoms:
        features = encode_images(model, torch.from_numpy(phantom.image[None, :, :, None]))
        places = [place(mask) for mask in phantom.lesions]
        points = torch.tensor(places, dtype=torch.float32)[:, None] * (model.image_size / phantom.image.shape[0])
        labels = torch.ones(len(points), 1, dtype=torch.int)
        logits, predicted = decode_prompts(model, features.repeat(len(points)), points, labels)
        full = torch.nn.functional.interpolate(logits, phantom.image.shape, mode="bilinear", align_corners=False)
        best = predicted.argmax(1).tolist()
        for number, (lesion, (x, y)) in enumerate(zip(phantom.lesions, places, strict=True)):
            mask = full[number, best[number]].numpy()
            found.append(iou(main_piece(mask > OUTLINE, (int(y), int(x))) if tidy else mask > 0, lesion))
    return float(np.mean(found))


def stage_batch(phantoms: Sequence[Phantom]) -> dict:
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
    """Shares of images: whose lesions are covered by 80 %, and by a mask of at most ``MOST_KEPT`` of the image.

    ``kept`` is the share of an image that its mask keeps in the mean. The whole image covers everything: a mask that
    is hardly less has found nothing.
    """

    covered: float
    found: float
    kept: float


def covering(masks: Sequence[np.ndarray], lesions: Sequence[np.ndarray]) -> Cover:
    """How masks cover lesions, both bool [h, w] for each image."""
    covered = [(mask & lesion).sum() >= 0.8 * lesion.sum() for mask, lesion in zip(masks, lesions, strict=True)]
    kept = np.array([mask.mean() for mask in masks])
    return Cover(float(np.mean(covered)), float(np.mean(covered & (kept <= MOST_KEPT))), float(kept.mean()))


def region_finder(model: Any, phantoms: Sequence[Phantom], points: torch.Tensor | None = None) -> list[np.ndarray]:
    """Focus masks of the project's region finder, at its defaults; other points than its grid on request."""
    segment = Segment(model, SegmentSection().settings)
    if points is not None:
        segment.points = points
    out = segment(stage_batch(phantoms))
    return [decode_mask(counts, *phantoms[0].image.shape) for counts in out["mask_counts"]]


def fit_to(predictor: Any, size: int) -> None:
    """Give SAM2's predictor the sizes of its maps for images of this side: it has those of 1024 pixels."""
    side = size // 4
    predictor._bb_feat_sizes = [(side, side), (side // 2, side // 2), (side // 4, side // 4)]


def automatic_generator(model: Any) -> Any:
    """The package's own SAM2AutomaticMaskGenerator, at its defaults."""
    register_suppression()
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    generator = SAM2AutomaticMaskGenerator(model)
    fit_to(generator.predictor, model.image_size)
    return generator


def best_union(made: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> np.ndarray:
    """The union of a generator's best masks, as many as the region finder takes, by predicted IoU and stability."""
    best = sorted(made, key=lambda entry: -entry["predicted_iou"] * entry["stability_score"])
    union = np.zeros(shape, bool)
    for entry in best[: SegmentSection().regions]:
        union |= entry["segmentation"]
    return union if union.any() else np.ones_like(union)


def generator_masks(model: Any, phantoms: Sequence[Phantom]) -> tuple[list[np.ndarray], float]:
    """The generator's union for each image, and the mean IoU of each lesion with whichever mask fits it best."""
    generator = automatic_generator(model)
    unions, fits = [], []
    for phantom in phantoms:
        made = generator.generate(np.repeat(phantom.image[:, :, None], 3, axis=2))
        unions.append(best_union(made, phantom.image.shape))
        fits += [max((iou(entry["segmentation"], lesion) for entry in made), default=0.0) for lesion in phantom.lesions]
    return unions, float(np.mean(fits))


def register_suppression() -> None:
    """Give torchvision::nms a plain implementation where its compiled one is absent, for the generator alone."""
    from medfocus.stages import torchvision_ops  # before torchvision

    # isort: split
    import torchvision.extension

    if torchvision_ops.library is None or torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU"):
        return

    def suppress(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        order = scores.argsort(descending=True).tolist()
        kept: list[int] = []
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        for index in order:
            if kept:
                others = boxes[kept]
                low, high = (
                    torch.maximum(others[:, :2], boxes[index, :2]),
                    torch.minimum(others[:, 2:], boxes[index, 2:]),
                )
                shared = (high - low).clamp(min=0).prod(1)
                if (shared / (area[kept] + area[index] - shared) > threshold).any():
                    continue
            kept.append(index)
        return torch.tensor(kept, dtype=torch.int64)

    torchvision_ops.library.impl("nms", suppress, "CPU")
    torchvision.extension._has_ops = lambda: True  # it now has the one that is called


@torch.inference_mode()
def zero_shot(
    clip: Any,
    tokenizer: Any,
    phantoms: Sequence[Phantom],
    sentences: Mapping[str, Sequence[str]],
    truth: Callable[[Phantom], str],
) -> float:
    """Accuracy of the name whose sentences, embedded and averaged (arXiv 2103.00020, section 3.1.4), fit best."""
    tower = ImageTower(clip, 1)
    pixels = torch.from_numpy(np.stack([phantom.image for phantom in phantoms])[..., None])
    parts = [clip.encode_image(tower.normalise(part), normalize=True) for part in pixels.split(64)]
    text = [clip.encode_text(tokenizer(list(forms)), normalize=True).mean(0) for forms in sentences.values()]
    names = list(sentences)
    best = (torch.cat(parts) @ torch.nn.functional.normalize(torch.stack(text), dim=-1).T).argmax(1).tolist()
    return float(np.mean([names[index] == truth(phantom) for index, phantom in zip(best, phantoms, strict=True)]))


def measure() -> list[Row]:
    """All rows of the table."""
    config = Config()
    source = model_files.resolve_sam2(config.segment, config.storage)
    sam2 = load_sam2(source.model, source.checkpoint)
    phantoms = {preset: held_out(preset, sam2.image_size) for preset in PRESETS}
    mixed = [phantom for pair in zip(*phantoms.values(), strict=True) for phantom in pair][:IMAGES]
    rows = [
        at_least("SAM2: IoU of one click at a lesion's centre", one_click(sam2, mixed), 0.80),
        Row("the same, as the decoder gives it, with specks and holes", f"{one_click(sam2, mixed, tidy=False):.3f}"),
        Row("SAM2: IoU of one click at a random point of a lesion", f"{one_click(sam2, mixed, somewhere):.3f}"),
    ]
    lesions = [phantom.lesions.any(0) for phantom in mixed]
    regions = covering(region_finder(sam2, mixed), lesions)
    rows += [
        at_least("region finder: images whose lesions are covered by 80 %", regions.covered, 0.90),
        at_most("region finder: share of the image kept", regions.kept, MOST_KEPT),
    ]
    grid = config.segment.points_per_side**2
    points = torch.from_numpy(np.random.default_rng(SEED).uniform(0, sam2.image_size, (grid, 2)).astype(np.float32))
    at_random = covering(region_finder(sam2, mixed, points), lesions)
    rows.append(Row(f"{grid} random points: covered, kept", f"{at_random.covered:.3f}, {at_random.kept:.3f}"))
    few = mixed[:IMAGES_OF_THE_GENERATOR]
    unions, fit = generator_masks(sam2, few)
    made = covering(unions, lesions[: len(few)])
    rows += [
        Row(f"SAM2AutomaticMaskGenerator, {len(few)} images: covered, kept", f"{made.covered:.3f}, {made.kept:.3f}"),
        Row("SAM2AutomaticMaskGenerator: IoU of the mask that fits a lesion best", f"{fit:.3f}"),
    ]

    source = model_files.resolve_clip(config.clip, config.storage)
    clip, tokenizer = load_clip(source.model, source.checkpoint), load_tokenizer(source.model)
    everything = [*phantoms["easy"], *phantoms["hard"]]
    words = [word for name in MODALITIES for word in MODALITY_WORDS[name]]
    machines = {
        name: [f"a {word} of the {organ}" for word in MODALITY_WORDS[name] for organ in ORGANS] for name in MODALITIES
    }
    organs = {organ: [f"a {word} of the {organ}" for word in words] for organ in ORGANS}
    kinds = {name: [f"a picture showing a {name}"] for name in CLASSES}
    hard = zero_shot(clip, tokenizer, phantoms["hard"], kinds, _label)
    return [
        *rows,
        at_least("CLIP zero-shot: modality", zero_shot(clip, tokenizer, everything, machines, _modality), 0.95),
        at_least("CLIP zero-shot: organ", zero_shot(clip, tokenizer, everything, organs, _organ), 0.90),
        at_least("CLIP zero-shot: lesion kind, easy", zero_shot(clip, tokenizer, phantoms["easy"], kinds, _label), 0.6),
        Row("CLIP zero-shot: lesion kind, hard", f"{hard:.3f}", "< 0.6", hard < 0.6),
    ]


def _modality(phantom: Phantom) -> str:
    return phantom.modality


def _organ(phantom: Phantom) -> str:
    return phantom.organ


def _label(phantom: Phantom) -> str:
    return phantom.label


def main() -> int:
    rows = measure()
    print("| figure | value | threshold | |\n|---|---|---|---|")
    for row in rows:
        verdict = "" if row.met is None else "met" if row.met else "MISS"
        print(f"| {row.what} | {row.value} | {row.threshold} | {verdict} |")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
