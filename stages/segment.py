"""Find regions with SAM2, batched over images and points."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from medfocus.stages.batch import Batch, fail, well, writable
from medfocus.stages.batched_sam2 import ClickTokens, ImageFeatures, click_tokens, draw_masks, encode_images
from medfocus.stages.masks import bounding_box, encode_mask, main_piece

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# Logit offset of the stability score, and candidates kept while passes go on, as multiples of the regions wanted.
_STABILITY_OFFSET = 1.0
# Logit at which a region's outline is best, chosen on phantoms that no figure is of.
OUTLINE = -0.5
# Cells of the logits about a region that its margin may reach.
_NEAR = 3
_KEPT_PER_REGION = 8
# Clicks of an image whose masks are drawn together, those that promise most first.
_DRAWN_AT_ONCE = 4
# Images in one pass of the encoder, and points times images in one pass of the decoder. A CPU's caches hold little, and
# larger passes are no faster there; a GPU is to be filled.
_ON_A_CPU, _ON_A_GPU = (1, 25), (8, 64)
# Bytes that a CPU's pass may have for the image as its clicks see it: what is larger, glibc asks the system for each
# time (DEFAULT_MMAP_THRESHOLD_MAX), and all its pages are faulted in.
_KEPT_BY_GLIBC = 32 << 20


@dataclass(frozen=True)
class Candidates:
    """M masks proposed for images of a batch: which image's they are, int64 [M], logits [M, h, w], the score [M] they
    are ranked by, and the clicks [M, 2] that gave them, x and y in pixels of the model's input."""

    images: torch.Tensor
    logits: torch.Tensor
    score: torch.Tensor
    clicks: torch.Tensor

    def take(self, rows: torch.Tensor) -> "Candidates":
        """Some of them: indices, or bool [M]."""
        return Candidates(self.images[rows], self.logits[rows], self.score[rows], self.clicks[rows])

    def best(self, image: int, count: int) -> "Candidates":
        """The ``count`` highest scores of one image, in falling order."""
        own = self.take(self.images == image)
        return own.take(own.score.topk(min(count, len(own.score))).indices)

    @staticmethod
    def join(parts: "list[Candidates]") -> "Candidates":
        return Candidates(*(torch.cat([getattr(part, name.name) for part in parts]) for name in fields(Candidates)))


class Segment:
    """The focus mask of each image: the union of the best regions that SAM2 proposes on a grid of points.

    Candidates are ranked by predicted IoU x stability x area prior. The prior is log-normal in the share of the
    image a mask covers; masks outside the area bounds (specks, or the whole body) and unstable ones are dropped,
    as are those that overlap a better one or score far below the best. Of each region the connected piece at its click
    is kept, without holes: SAM2's masks have specks elsewhere, which its own generator can remove too. The focus mask
    reaches a little beyond the regions, since what is missing of a lesion costs more than what is shown around it. An
    image without a candidate left gets the whole image as its mask, with ``mask_score`` 0.

    The decoder runs over images and points at once, where the package's own ``predict_batch`` loops over images, and
    draws no mask that cannot count.

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
        batch_size: images in one pass of the encoder; None takes what suits the device.
        prompts_per_pass: points times images in one pass of the decoder; None likewise.
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
        batch_size: int | None,
        prompts_per_pass: int | None,
    ):
        self.model = model
        self.device = model.device
        self.size: int = model.image_size
        self.regions = regions
        self.min_area, self.max_area = min_area, max_area
        self.prior_area, self.prior_spread = prior_area, prior_spread
        self.min_stability, self.max_overlap = min_stability, max_overlap
        self.min_relative_score, self.margin = min_relative_score, margin
        suits = self._passes_on_a_cpu() if self.device.type == "cpu" else _ON_A_GPU
        self.batch_size, self.prompts_per_pass = batch_size or suits[0], prompts_per_pass or suits[1]
        self.points = spread(point_grid(points_per_side, self.size)).to(self.device)

    def _passes_on_a_cpu(self) -> tuple[int, int]:
        images, prompts = _ON_A_CPU
        places = (self.size // self.model.backbone_stride) ** 2
        return images, min(prompts, max(1, _KEPT_BY_GLIBC // (places * self.model.hidden_dim * 4)))

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
                    score[row] = candidates.score[0].item()
                    box[row] = bounding_box((candidates.logits[0] > 0).cpu().numpy())
        return out | {"mask_counts": counts, "mask_score": score, "region_box": box}

    @torch.inference_mode()
    def find(self, pixels: np.ndarray) -> list[Candidates | None]:
        """The regions of each image, best first, at most ``regions``; None where numbers are not finite."""
        features = self.encode(torch.from_numpy(np.ascontiguousarray(pixels)))
        kept = self.regions * _KEPT_PER_REGION
        parts: list[Candidates] = []
        for proposed in self.propose(features):
            parts.append(proposed.take(~(proposed.score <= 0)))  # one that must be dropped; a NaN must not
            if sum(len(part.score) for part in parts) > 2 * kept * len(pixels):
                found = Candidates.join(parts)
                parts = [found.best(image, kept) for image in range(len(pixels))]
        found = Candidates.join(parts)
        finite = features.embedding.isfinite().flatten(1).all(1)
        finite[found.images[~found.score.isfinite()]] = False
        return [
            self._whole(self._distinct(found.best(image, kept))) if finite[image] else None
            for image in range(len(pixels))
        ]

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> ImageFeatures:
        """Encoder features of images, uint8 [B, S, S, 1 or 3]."""
        return encode_images(self.model, pixels)

    def propose(self, features: ImageFeatures) -> Iterator[Candidates]:
        """Ranked candidates of a few clicks at a time; one that must be dropped scores 0.

        No candidate scores above its predicted IoU, which is known before its mask is drawn: where that is below what
        counts beside the image's best score so far, no mask is drawn.
        """
        step = max(1, self.prompts_per_pass // len(features.embedding))
        counts_from = torch.zeros(len(features.embedding), device=self.device)
        for points in self.points.split(step):
            attended = click_tokens(self.model, features, points)
            most, order = attended.iou.amax(2).sort(1, descending=True)
            for first in range(0, len(points), _DRAWN_AT_ONCE):
                here = slice(first, first + _DRAWN_AT_ONCE)
                # Not >=: a number that is no number is drawn, and found out.
                wanted = ~(most[:, here] < counts_from[:, None])
                if not wanted.any():
                    break
                images, places = wanted.nonzero(as_tuple=True)
                proposed = self._draw(features, attended, points, images, order[images, first + places])
                counts_from.scatter_reduce_(0, proposed.images, self.min_relative_score * proposed.score, "amax")
                yield proposed

    def _draw(
        self,
        features: ImageFeatures,
        attended: ClickTokens,
        points: torch.Tensor,
        images: torch.Tensor,
        clicks: torch.Tensor,
    ) -> Candidates:
        """Candidates of N pairs of an image and a click, int64 [N] each."""
        logits, iou = draw_masks(self.model, features, attended, images, clicks), attended.iou[images, clicks]
        masks = iou.shape[1]
        return Candidates(
            images.repeat_interleave(masks),
            logits.flatten(0, 1),
            self._rank(logits.flatten(0, 1), iou.flatten()),
            points[clicks].repeat_interleave(masks, 0),
        )

    def _rank(self, logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
        """Scores [M] of masks, logits [M, h, w]; 0 for one that must be dropped."""
        flat = logits.flatten(1)
        area = (flat > 0).float().mean(1)
        inner, outer = ((flat > offset).sum(1) for offset in (_STABILITY_OFFSET, -_STABILITY_OFFSET))
        stability = inner / outer.clamp(min=1)
        distance = (area.clamp(min=1e-9).log() - float(np.log(self.prior_area))) / self.prior_spread
        kept = (area >= self.min_area) & (area <= self.max_area) & (stability >= self.min_stability)
        score = iou.clamp(0, 1) * stability * torch.exp(-0.5 * distance**2)
        return torch.where(kept | ~score.isfinite(), score, torch.zeros_like(score))

    def _distinct(self, ranked: Candidates) -> Candidates:
        """The regions among one image's candidates in falling order of score."""
        masks = (ranked.logits > 0).flatten(1).float()
        shared, area = masks @ masks.T, masks.sum(1)
        same = (shared / (area[:, None] + area - shared).clamp(min=1) > self.max_overlap).cpu().numpy()
        good = (ranked.score >= self.min_relative_score * ranked.score[:1]).cpu().numpy()
        chosen: list[int] = []
        for index in np.flatnonzero(good):
            if len(chosen) < self.regions and not same[index, chosen].any():
                chosen.append(int(index))
        return ranked.take(torch.tensor(chosen, dtype=torch.long, device=ranked.score.device))

    def _whole(self, regions: Candidates) -> Candidates:
        """Regions as one piece each, their logits about the outline; below the margin where another piece was."""
        logits = regions.logits - OUTLINE
        if not logits.numel():
            return regions
        places = (regions.clicks * (logits.shape[-1] / self.size)).long().tolist()
        masks = (logits > 0).cpu().numpy()
        pieces = [main_piece(mask, (row, column)) for mask, (column, row) in zip(masks, places, strict=True)]
        inside = torch.from_numpy(np.stack(pieces)).to(logits.device)
        step = torch.finfo(logits.dtype).eps
        # What is near a piece and above the margin belongs to it; what is farther away is of another piece.
        near = F.max_pool2d(inside.float(), 2 * _NEAR + 1, stride=1, padding=_NEAR) > 0
        outside = torch.where(near, logits.clamp(max=-step), logits.clamp(max=-self.margin - 1))
        return replace(regions, logits=torch.where(inside, logits.clamp(min=step), outside))

    def _union(self, regions: Candidates, size: tuple[int, int]) -> np.ndarray:
        """Union of the regions of one image as a mask, bool [H, W], in the size of the upright image."""
        if not regions.score.numel():
            return np.ones(size, bool)
        full = F.interpolate(regions.logits[None], size, mode="bilinear", align_corners=False)[0]
        mask = (full > -self.margin).any(0).cpu().numpy()
        return mask if mask.any() else np.ones(size, bool)


def point_grid(per_side: int, size: int) -> torch.Tensor:
    """Centres of a square grid of cells, float32 [per_side squared, 2], x and y in pixels of a side of ``size``."""
    centres = (torch.arange(per_side, dtype=torch.float32) + 0.5) * (size / per_side)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def spread(points: torch.Tensor) -> torch.Tensor:
    """The points [P, 2] in an order whose every beginning is spread over all of them (golden-section sequence)."""
    places = torch.arange(len(points), dtype=torch.float64) * ((5**0.5 - 1) / 2)
    return points[places.frac().argsort()]
