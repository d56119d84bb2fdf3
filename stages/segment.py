"""The region finder: SAM2 over batches of images and points."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medfocus.stages.batch import Batch, fail, well, writable
from medfocus.stages.batched_sam2 import ClickTokens, ImageFeatures, click_tokens, draw_masks, encode_images
from medfocus.stages.masks import bounding_box, encode_mask
from medfocus.stages.regions import Candidates, keep_main_pieces, score_masks, select_regions, union_mask
from medfocus.stages.segment_settings import SegmentSettings

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# Candidates of an image that stay between passes of the decoder, as a multiple of ``settings.regions``.
_CANDIDATES_PER_REGION = 8
# Clicks of an image whose masks are drawn together, in falling order of predicted IoU.
_DRAWN_TOGETHER = 4
# Images in one pass of the encoder, and points times images in one pass of the decoder. On a CPU larger passes are not
# faster, because its caches are small; a GPU is faster when it is full.
_CPU_PASS, _GPU_PASS = (1, 25), (8, 64)
# Bytes of image tokens in one pass on a CPU. glibc requests a larger block from the system each time
# (DEFAULT_MMAP_THRESHOLD_MAX), and each of its pages then costs a page fault.
_CPU_PASS_BYTES = 32 << 20


class Segment:
    """Finds the focus mask of each image: the union of the best regions that SAM2 proposes on a grid of points.

    Candidates are ranked by predicted IoU x stability x area prior. The prior is log-normal in the share of the image
    that a mask covers. A candidate is dropped if its area is outside the bounds (a speck, or the whole body), if it is
    unstable, if it overlaps a better one, or if it scores far below the best. Each region is reduced to the connected
    piece at its click, without holes, because SAM2's masks have specks elsewhere. The focus mask includes a margin
    around the regions: a missing part of a lesion costs more than some surroundings. An image without any region gets
    the whole image as its mask, and ``mask_score`` 0.

    The decoder runs over images and points at once, where the package's ``predict_batch`` loops over images. It draws
    no mask that cannot become a region.

    Resources:
        One GPU, or CPU threads of torch. On a GPU the default passes are 8 images and 64 prompts, on a CPU 1 and 25.

    Columns taken:
        pixels: uint8 [N, S, S, 1 or 3], S in pixels.
        height: int32 [N], of the upright image in pixels.
        width: int32 [N], of the upright image in pixels.

    Columns added:
        mask_counts: str [N], COCO run-length counts of the focus mask at height x width; empty for a failed row.
        mask_score: float32 [N], score of the best region, 0 where the mask is the whole image.
        region_box: float32 [N, 4], left, top, right and bottom of the best region as shares of the sides, 0..1.

    Columns removed:
        None.

    Errors:
        NotFinite: SAM2 gives values for this image that are not finite.

    Args:
        model: SAM2 in evaluation mode (``stages.weights.load_sam2``).
        settings: the grid, the choice of regions, and the sizes of the passes.
    """

    def __init__(self, model: "SAM2Base", settings: SegmentSettings):
        self.model = model
        self.settings = settings
        self.device = model.device
        self.size: int = model.image_size
        images, prompts = self._cpu_pass() if self.device.type == "cpu" else _GPU_PASS
        self.batch_size = settings.batch_size or images
        self.prompts_per_pass = settings.prompts_per_pass or prompts
        self.points = spread_order(point_grid(settings.points_per_side, self.size)).to(self.device)

    def _cpu_pass(self) -> tuple[int, int]:
        """Images in one pass of the encoder and prompts in one pass of the decoder, on a CPU."""
        images, prompts = _CPU_PASS
        places = (self.size // self.model.backbone_stride) ** 2
        return images, min(prompts, max(1, _CPU_PASS_BYTES // (places * self.model.hidden_dim * 4)))

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Find the focus mask of each image.

        Args:
            batch: the columns taken, and the failure columns; failed rows are skipped.

        Returns:
            A copy of the batch with the columns added.
        """
        out = writable(batch)
        rows = well(batch)
        counts = np.full(len(batch["image_id"]), "", dtype=object)
        score = np.zeros(len(counts), np.float32)
        box = np.tile(np.array([0, 0, 1, 1], np.float32), (len(counts), 1))
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            for row, regions in zip(chunk, self.find(batch["pixels"][chunk]), strict=True):
                if regions is None:
                    fail(out, row, "segment", "NotFinite", "SAM2 gave numbers that are not finite for this image")
                    continue
                height, width = int(batch["height"][row]), int(batch["width"][row])
                counts[row] = encode_mask(union_mask(regions, self.settings.margin, height, width))
                if regions.score.numel():
                    score[row] = regions.score[0].item()
                    box[row] = bounding_box((regions.logits[0] > 0).cpu().numpy())
        return out | {"mask_counts": counts, "mask_score": score, "region_box": box}

    @torch.inference_mode()
    def find(self, pixels: np.ndarray) -> list[Candidates | None]:
        """Find the regions of images.

        Args:
            pixels: uint8 [B, S, S, 1 or 3].

        Returns:
            For each image its regions, best first, at most ``settings.regions``; None where values are not finite.
        """
        features = self.encode(torch.from_numpy(np.ascontiguousarray(pixels)))
        limit = self.settings.regions * _CANDIDATES_PER_REGION
        parts: list[Candidates] = []
        for proposed in self.propose(features):
            parts.append(proposed.take(~(proposed.score <= 0)))  # not > 0: a NaN must stay
            if sum(len(part.score) for part in parts) > 2 * limit * len(pixels):
                candidates = Candidates.join(parts)
                parts = [candidates.best(image, limit) for image in range(len(pixels))]
        candidates = Candidates.join(parts)
        finite = features.embedding.isfinite().flatten(1).all(1)
        finite[candidates.images[~candidates.score.isfinite()]] = False
        return [self._regions(candidates.best(image, limit)) if finite[image] else None for image in range(len(pixels))]

    def _regions(self, ranked: Candidates) -> Candidates:
        """The regions among the candidates of one image, best first."""
        return keep_main_pieces(select_regions(ranked, self.settings), self.settings.margin, self.size)

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> ImageFeatures:
        """Encoder features of images, uint8 [B, S, S, 1 or 3]."""
        return encode_images(self.model, pixels)

    def propose(self, features: ImageFeatures) -> Iterator[Candidates]:
        """Draw and score the candidates of the grid, a few clicks at a time.

        The score of a candidate is at most its predicted IoU, which is known before its mask is drawn. A mask is not
        drawn where that IoU is below the least score that a region can have beside the image's best score so far.

        Args:
            features: the features of B images.

        Yields:
            Candidates with their scores; one that must be dropped scores 0.
        """
        step = max(1, self.prompts_per_pass // len(features.embedding))
        least_score = torch.zeros(len(features.embedding), device=self.device)
        for points in self.points.split(step):
            tokens = click_tokens(self.model, features, points)
            best_iou, order = tokens.iou.amax(2).sort(1, descending=True)
            for first in range(0, len(points), _DRAWN_TOGETHER):
                # Not >=: a NaN compares false, so its mask is drawn and the image is reported as not finite.
                promising = ~(best_iou[:, first : first + _DRAWN_TOGETHER] < least_score[:, None])
                if not promising.any():
                    break
                images, places = promising.nonzero(as_tuple=True)
                proposed = self._draw(features, tokens, points, images, order[images, first + places])
                best_score = self.settings.min_relative_score * proposed.score
                least_score.scatter_reduce_(0, proposed.images, best_score, "amax")
                yield proposed

    def _draw(
        self,
        features: ImageFeatures,
        tokens: ClickTokens,
        points: torch.Tensor,
        images: torch.Tensor,
        clicks: torch.Tensor,
    ) -> Candidates:
        """Candidates of N pairs of an image and a click, given by their indices int64 [N]."""
        logits, iou = draw_masks(self.model, features, tokens, images, clicks), tokens.iou[images, clicks]
        masks = iou.shape[1]
        return Candidates(
            images.repeat_interleave(masks),
            logits.flatten(0, 1),
            score_masks(logits.flatten(0, 1), iou.flatten(), self.settings),
            points[clicks].repeat_interleave(masks, 0),
        )


def point_grid(per_side: int, size: int) -> torch.Tensor:
    """Centres of the cells of a square grid.

    Args:
        per_side: cells along each side.
        size: side of the image in pixels.

    Returns:
        Float32 [per_side squared, 2], x and y in pixels.
    """
    centres = (torch.arange(per_side, dtype=torch.float32) + 0.5) * (size / per_side)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def spread_order(points: torch.Tensor) -> torch.Tensor:
    """Reorder points [P, 2] so that the first few already spread over the image (golden-section sequence)."""
    places = torch.arange(len(points), dtype=torch.float64) * ((5**0.5 - 1) / 2)
    return points[places.frac().argsort()]
