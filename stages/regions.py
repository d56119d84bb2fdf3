"""Candidate masks of SAM2, and which of them are the regions of an image."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F

from medfocus.stages.masks import main_piece
from medfocus.stages.segment_settings import SegmentSettings

OUTLINE = -0.5
"""Logit at which a region has its outline. It was chosen on phantoms that no published figure uses."""
# Offset of the logit in SAM's stability score, the IoU of the masks at +offset and -offset (as in its mask generator).
_STABILITY_OFFSET = 1.0
# How far the margin may reach beyond a region, in pixels of the logits.
_MARGIN_REACH = 3


@dataclass(frozen=True)
class Candidates:
    """M candidate masks for the images of a batch.

    Attributes:
        images: int64 [M], index of the image that each belongs to.
        logits: float [M, h, w].
        score: float [M], by which candidates are ranked.
        clicks: float [M, 2], the click that each comes from, x and y in pixels of the model's input.
    """

    images: torch.Tensor
    logits: torch.Tensor
    score: torch.Tensor
    clicks: torch.Tensor

    def take(self, rows: torch.Tensor) -> "Candidates":
        """The candidates at the given indices int64 [N], or where a mask bool [M] is true."""
        return Candidates(self.images[rows], self.logits[rows], self.score[rows], self.clicks[rows])

    def best(self, image: int, count: int) -> "Candidates":
        """The ``count`` candidates of one image with the highest scores, best first."""
        own = self.take(self.images == image)
        return own.take(own.score.topk(min(count, len(own.score))).indices)

    @staticmethod
    def join(parts: "list[Candidates]") -> "Candidates":
        """All candidates of several parts, in their order."""
        return Candidates(*(torch.cat([getattr(part, name.name) for part in parts]) for name in fields(Candidates)))


def score_masks(logits: torch.Tensor, iou: torch.Tensor, settings: SegmentSettings) -> torch.Tensor:
    """Score masks by predicted IoU x stability x area prior.

    Args:
        logits: float [M, h, w].
        iou: float [M], predicted IoU.
        settings: bounds and prior of the area, and the least stability.

    Returns:
        Float [M]. A mask outside the bounds scores 0; a score that is not finite stays so.
    """
    flat = logits.flatten(1)
    area = (flat > 0).float().mean(1)
    inner, outer = ((flat > offset).sum(1) for offset in (_STABILITY_OFFSET, -_STABILITY_OFFSET))
    stability = inner / outer.clamp(min=1)
    distance = (area.clamp(min=1e-9).log() - float(np.log(settings.prior_area))) / settings.prior_spread
    eligible = (area >= settings.min_area) & (area <= settings.max_area) & (stability >= settings.min_stability)
    score = iou.clamp(0, 1) * stability * torch.exp(-0.5 * distance**2)
    return torch.where(eligible | ~score.isfinite(), score, torch.zeros_like(score))


def select_regions(ranked: Candidates, settings: SegmentSettings) -> Candidates:
    """Select the regions of one image: the best candidates that do not overlap a better one.

    Args:
        ranked: candidates of one image, best first.
        settings: most regions, largest overlap and least relative score.

    Returns:
        At most ``settings.regions`` of the candidates, best first.
    """
    masks = (ranked.logits > 0).flatten(1).float()
    shared, area = masks @ masks.T, masks.sum(1)
    overlapping = (shared / (area[:, None] + area - shared).clamp(min=1) > settings.max_overlap).cpu().numpy()
    eligible = (ranked.score >= settings.min_relative_score * ranked.score[:1]).cpu().numpy()
    selected: list[int] = []
    for index in np.flatnonzero(eligible):
        if len(selected) < settings.regions and not overlapping[index, selected].any():
            selected.append(int(index))
    return ranked.take(torch.tensor(selected, dtype=torch.long, device=ranked.score.device))


def keep_main_pieces(regions: Candidates, margin: float, input_size: int) -> Candidates:
    """Reduce each region to the connected piece at its click, without holes, and centre its logits on the outline.

    Args:
        regions: the regions of one image.
        margin: logits below 0 down to which the surroundings of a region belong to the focus mask.
        input_size: side of the model's input in pixels, the unit of the clicks.

    Returns:
        The regions with logits that are above 0 in the piece alone. Beyond its surroundings they are below -margin.
    """
    logits = regions.logits - OUTLINE
    if not logits.numel():
        return regions
    places = (regions.clicks * (logits.shape[-1] / input_size)).long().tolist()
    masks = (logits > 0).cpu().numpy()
    pieces = [main_piece(mask, (row, column)) for mask, (column, row) in zip(masks, places, strict=True)]
    inside = torch.from_numpy(np.stack(pieces)).to(logits.device)
    step = torch.finfo(logits.dtype).eps
    # Pixels above the margin belong to the piece where they are near it; farther away they belong to another piece.
    near = F.max_pool2d(inside.float(), 2 * _MARGIN_REACH + 1, stride=1, padding=_MARGIN_REACH) > 0
    outside = torch.where(near, logits.clamp(max=-step), logits.clamp(max=-margin - 1))
    return replace(regions, logits=torch.where(inside, logits.clamp(min=step), outside))


def union_mask(regions: Candidates, margin: float, height: int, width: int) -> np.ndarray:
    """The focus mask of one image: the union of its regions and their margins.

    Args:
        regions: the regions of the image; without any, the mask is the whole image.
        margin: logits below 0 down to which the surroundings of a region belong to the mask.
        height: height of the upright image in pixels.
        width: width of the upright image in pixels.

    Returns:
        Bool [height, width].
    """
    if not regions.score.numel():
        return np.ones((height, width), bool)
    full = F.interpolate(regions.logits[None], (height, width), mode="bilinear", align_corners=False)[0]
    mask: np.ndarray = (full > -margin).any(0).cpu().numpy()
    return mask if mask.any() else np.ones((height, width), bool)
