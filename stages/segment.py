"""Find regions with SAM2, batched over images and points."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from stages import torchvision_ops  # noqa: F401  before sam2
from stages.batch import Batch, fail, well, writable
from stages.masks import bounding_box, encode_mask, main_piece

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# SAM2's own image normalisation (sam2.utils.transforms.SAM2Transforms).
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# Logit offset of the stability score, and candidates kept while passes go on, as multiples of the regions wanted.
_STABILITY_OFFSET = 1.0
# Logit at which a region's outline is best, chosen on phantoms that no figure is of.
OUTLINE = -0.5
# Cells of the logits about a region that its margin may reach.
_NEAR = 3
_KEPT_PER_REGION = 8


@dataclass(frozen=True)
class ImageFeatures:
    """What the encoder makes of B images: the embedding and the two finer maps the decoder adds."""

    embedding: torch.Tensor  # float [B, D, e, e]
    fine: tuple[torch.Tensor, ...]  # float [B, D/8, 4e, 4e] and [B, D/4, 2e, 2e]

    def take(self, rows: torch.Tensor) -> "ImageFeatures":
        """The images of the given indices."""
        return ImageFeatures(self.embedding[rows], tuple(level[rows] for level in self.fine))

    def repeat(self, times: int) -> "ImageFeatures":
        """Each image ``times`` times in a row, so that it meets as many prompts."""
        return ImageFeatures(
            self.embedding.repeat_interleave(times, 0), tuple(level.repeat_interleave(times, 0) for level in self.fine)
        )


@dataclass(frozen=True)
class Candidates:
    """Masks proposed for B images, M each: logits [B, M, h, w], the score [B, M] they are ranked by, and the clicks
    [B, M, 2] that gave them, x and y in pixels of the model's input."""

    logits: torch.Tensor
    score: torch.Tensor
    clicks: torch.Tensor

    def best(self, count: int) -> "Candidates":
        """The ``count`` highest scores of each image, in falling order."""
        score, order = self.score.topk(min(count, self.score.shape[1]), dim=1)
        images = torch.arange(len(order), device=order.device)[:, None]
        return Candidates(self.logits[images, order], score, self.clicks[images, order])

    def of(self, image: int, rows: torch.Tensor) -> "Candidates":
        """Some of one image's, bool [M]."""
        return Candidates(*(value[image : image + 1, rows] for value in (self.logits, self.score, self.clicks)))

    def join(self, other: "Candidates") -> "Candidates":
        pairs = ((self.logits, other.logits), (self.score, other.score), (self.clicks, other.clicks))
        return Candidates(*(torch.cat(pair, 1) for pair in pairs))


class Segment:
    """The focus mask of each image: the union of the best regions that SAM2 proposes on a grid of points.

    Candidates are ranked by predicted IoU x stability x area prior. The prior is log-normal in the share of the
    image a mask covers; masks outside the area bounds (specks, or the whole body) and unstable ones are dropped,
    as are those that overlap a better one or score far below the best. Of each region the connected piece at its click
    is kept, without holes: SAM2's masks have specks elsewhere, which its own generator can remove too. The focus mask
    reaches a little beyond the regions, since what is missing of a lesion costs more than what is shown around it. An
    image without a candidate left gets the whole image as its mask, with ``mask_score`` 0.

    The decoder runs over images and points at once: the package's own ``predict_batch`` loops over images.

    Args:
        model: SAM2 in evaluation mode (``stages.weights.load_sam2``).
        points_per_side: the grid has this number of points squared.
        regions: how many of the best candidates make the focus mask.
        min_area, max_area: bounds on the share of the image a candidate covers.
        prior_area, prior_spread: centre (a share) and width (in natural logarithms) of the area prior.
        min_stability: IoU of the masks at logits +1 and -1, below which a candidate is dropped.
        max_overlap: IoU with a better candidate above which one is dropped.
        min_relative_score: share of the best candidate's score below which one is dropped.
        margin: logits below 0 down to which a region's surroundings belong to the focus mask.
        batch_size: images in one pass of the encoder.
        prompts_per_pass: points times images in one pass of the decoder.
    """

    def __init__(
        self,
        model: "SAM2Base",
        *,
        points_per_side: int,
        regions: int,
        min_area: float,
        max_area: float,
        prior_area: float,
        prior_spread: float,
        min_stability: float,
        max_overlap: float,
        min_relative_score: float,
        margin: float,
        batch_size: int,
        prompts_per_pass: int,
    ):
        self.model = model
        self.device = model.device
        self.size: int = model.image_size
        self.regions = regions
        self.min_area, self.max_area = min_area, max_area
        self.prior_area, self.prior_spread = prior_area, prior_spread
        self.min_stability, self.max_overlap = min_stability, max_overlap
        self.min_relative_score, self.margin = min_relative_score, margin
        self.batch_size, self.prompts_per_pass = batch_size, prompts_per_pass
        self.points = point_grid(points_per_side, self.size).to(self.device)

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Find the focus mask of each image.

        Args:
            batch: ``pixels`` uint8 [N, S, S, 1 or 3], ``height`` and ``width`` int32 [N], failure columns.

        Returns:
            The batch with ``mask_counts`` str [N] (COCO run-length counts at height x width), ``mask_score``
            float32 [N] (rank score of the best region, 0 where the whole image stands in) and ``region_box`` float32
            [N, 4] (left, top, right and bottom of the best region, as shares of the sides). A row for which the model
            gives numbers that are not finite fails at ``segment``.
        """
        out = writable(batch)
        rows = well(batch)
        counts = np.full(len(batch["image_id"]), "", dtype=object)
        score = np.zeros(len(counts), np.float32)
        box = np.tile(np.array([0, 0, 1, 1], np.float32), (len(counts), 1))
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            sizes = [(int(batch["height"][row]), int(batch["width"][row])) for row in chosen]
            found = self.find(batch["pixels"][chosen])
            for row, size, candidates in zip(chosen, sizes, found, strict=True):
                if candidates is None:
                    fail(out, row, "segment", "NotFinite", "SAM2 gave numbers that are not finite for this image")
                    continue
                counts[row] = encode_mask(self._union(candidates, size))
                if candidates.score.numel():
                    score[row] = candidates.score[0, 0].item()
                    box[row] = bounding_box((candidates.logits[0, 0] > 0).cpu().numpy())
        return out | {"mask_counts": counts, "mask_score": score, "region_box": box}

    @torch.inference_mode()
    def find(self, pixels: np.ndarray) -> list[Candidates | None]:
        """The regions of each image, best first, at most ``regions``; None where numbers are not finite."""
        features = self.encode(torch.from_numpy(np.ascontiguousarray(pixels)))
        best: Candidates | None = None
        for proposed in self.propose(features):
            best = proposed if best is None else best.join(proposed)
            best = best.best(self.regions * _KEPT_PER_REGION)
        assert best is not None  # the grid has at least one point
        finite = features.embedding.isfinite().flatten(1).all(1) & best.score.isfinite().all(1)
        chosen = self._distinct(best)
        found = [best.of(image, chosen[image]) for image in range(len(pixels))]
        return [
            replace(regions, logits=self._whole(regions)) if finite[image] else None
            for image, regions in enumerate(found)
        ]

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> ImageFeatures:
        """Encoder features of images, uint8 [B, S, S, 1 or 3]."""
        return encode_images(self.model, pixels)

    @torch.inference_mode()
    def decode(self, features: ImageFeatures, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks that single foreground clicks give, the same clicks on every image.

        Args:
            features: of B images.
            points: float [P, 2], x and y in pixels of the model's input.

        Returns:
            Logits [B, 3 P, h, w] at a quarter of the input's side, and predicted IoU [B, 3 P].
        """
        images, clicks = len(features.embedding), len(points)
        labels = torch.ones(images * clicks, 1, dtype=torch.int, device=self.device)
        logits, iou = decode_prompts(self.model, features.repeat(clicks), points.repeat(images, 1)[:, None], labels)
        return logits.reshape(images, -1, *logits.shape[-2:]), iou.reshape(images, -1)

    def propose(self, features: ImageFeatures) -> Iterator[Candidates]:
        """Ranked candidates of a few points at a time; one that must be dropped scores 0."""
        step = max(1, self.prompts_per_pass // len(features.embedding))
        for points in self.points.split(step):
            logits, iou = self.decode(features, points)
            clicks = points.repeat_interleave(logits.shape[1] // len(points), 0).expand(len(logits), -1, -1)
            yield Candidates(logits, self._rank(logits, iou), clicks)

    def _rank(self, logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
        area = (logits > 0).flatten(2).float().mean(2)
        inner = (logits > _STABILITY_OFFSET).flatten(2).sum(2)
        outer = (logits > -_STABILITY_OFFSET).flatten(2).sum(2)
        stability = inner / outer.clamp(min=1)
        distance = (area.clamp(min=1e-9).log() - float(np.log(self.prior_area))) / self.prior_spread
        kept = (area >= self.min_area) & (area <= self.max_area) & (stability >= self.min_stability)
        score = iou.clamp(0, 1) * stability * torch.exp(-0.5 * distance**2)
        return torch.where(kept | ~score.isfinite(), score, torch.zeros_like(score))

    def _distinct(self, candidates: Candidates) -> torch.Tensor:
        """Which candidates, in falling order of score, make up the regions: bool [B, M]."""
        masks = (candidates.logits > 0).flatten(2).float()
        shared = masks @ masks.transpose(1, 2)
        area = masks.sum(2)
        overlap = shared / (area[:, :, None] + area[:, None, :] - shared).clamp(min=1)
        chosen = torch.zeros_like(candidates.score, dtype=torch.bool)
        good = (candidates.score > 0) & (candidates.score >= self.min_relative_score * candidates.score[:, :1])
        for index in range(chosen.shape[1]):
            covered = ((overlap[:, index] > self.max_overlap) & chosen).any(1)
            room = chosen.sum(1) < self.regions
            chosen[:, index] = good[:, index] & ~covered & room
        return chosen

    def _whole(self, regions: Candidates) -> torch.Tensor:
        """Logits [1, M, h, w] about the outline of regions as one piece each; below the margin where another was."""
        logits = regions.logits - OUTLINE
        if not logits.numel():
            return logits
        places = (regions.clicks[0] * (logits.shape[-1] / self.size)).long().tolist()
        masks = (logits[0] > 0).cpu().numpy()
        pieces = [main_piece(mask, (row, column)) for mask, (column, row) in zip(masks, places, strict=True)]
        inside = torch.from_numpy(np.stack(pieces))[None].to(logits.device)
        step = torch.finfo(logits.dtype).eps
        # What is near a piece and above the margin belongs to it; what is farther away is of another piece.
        near = F.max_pool2d(inside.float(), 2 * _NEAR + 1, stride=1, padding=_NEAR) > 0
        outside = torch.where(near, logits.clamp(max=-step), logits.clamp(max=-self.margin - 1))
        return torch.where(inside, logits.clamp(min=step), outside)

    def _union(self, candidates: Candidates, size: tuple[int, int]) -> np.ndarray:
        """Union of the regions of one image as a mask, bool [H, W], in the image's stored size."""
        if not candidates.score.numel():
            return np.ones(size, bool)
        full = F.interpolate(candidates.logits, size, mode="bilinear", align_corners=False)
        mask = (full > -self.margin).any(1)[0].cpu().numpy()
        return mask if mask.any() else np.ones(size, bool)


def encode_images(model: "SAM2Base", pixels: torch.Tensor) -> ImageFeatures:
    """SAM2's encoder on a batch, as ``SAM2ImagePredictor.set_image_batch`` runs it.

    Args:
        model: SAM2.
        pixels: uint8 [B, S, S, 1 or 3]; resized on the device as SAM2 does (bilinear, antialiased).
    """
    images = pixels.to(model.device).permute(0, 3, 1, 2).float().div(255).expand(-1, 3, -1, -1)
    if images.shape[-1] != model.image_size:
        images = F.interpolate(images, (model.image_size, model.image_size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values, device=model.device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    output = model.forward_image((images - mean) / std)
    _, maps, _, sizes = model._prepare_backbone_features(output)
    if model.directly_add_no_mem_embed:
        maps[-1] = maps[-1] + model.no_mem_embed
    # Flattened to [hw, B, D] for the video model; back to [B, D, h, w] for the decoder.
    levels = [level.permute(1, 2, 0).unflatten(2, size) for level, size in zip(maps, sizes, strict=True)]
    return ImageFeatures(levels[-1], tuple(levels[:-1]))


def decode_prompts(
    model: "SAM2Base",
    features: ImageFeatures,
    points: torch.Tensor,
    labels: torch.Tensor,
    *,
    masks: torch.Tensor | None = None,
    multimask: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SAM2's prompt encoder and mask decoder, a prompt for each image of the features.

    Args:
        model: SAM2.
        features: of N images (one image with several prompts is repeated).
        points: float [N, K, 2], x and y in pixels of the model's input.
        labels: int32 [N, K]: 1 foreground, 0 background, 2 and 3 the corners of a box.
        masks: logits of an earlier round, [N, 1, h, w].
        multimask: three masks a prompt, else one.

    Returns:
        Logits [N, 3 or 1, h, w] at a quarter of the input's side, and predicted IoU [N, 3 or 1].
    """
    encoder = model.sam_prompt_encoder
    sparse, dense = encoder(points=(points, labels), boxes=None, masks=masks)
    logits, iou, _, _ = model.sam_mask_decoder(
        image_embeddings=features.embedding,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        repeat_image=False,
        high_res_features=list(features.fine),
    )
    return logits, iou


def point_grid(per_side: int, size: int) -> torch.Tensor:
    """Centres of a square grid of cells, float32 [per_side squared, 2], x and y in pixels of a side of ``size``."""
    centres = (torch.arange(per_side, dtype=torch.float32) + 0.5) * (size / per_side)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
