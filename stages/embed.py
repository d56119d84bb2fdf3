"""Tokens of the frozen lower part of CLIP, of the image and of its best region, and the mask's share of each patch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stages.batch import Batch, fail, well, writable
from stages.masks import cover, decode_mask, square_about
from stages.tower import ImageTower

# How much of its side is shown around a region.
_MARGIN = 0.15


class Embed:
    """Run the part of CLIP below the cut on the image, and on its best region where that is asked for.

    The region is shown large: the square about it with a margin, as a crop. What is around it inside of the square
    stays: a region's outline against its surroundings tells what it is.

    Args:
        tower: image tower of a frozen CLIP.
        region: whether the tokens of the region are made too.
        batch_size: images in one pass.
    """

    def __init__(self, tower: ImageTower, *, region: bool, batch_size: int):
        self.tower = tower.eval()
        self.device = next(tower.parameters()).device
        self.region = region
        self.batch_size = batch_size

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Embed a batch.

        Args:
            batch: ``pixels`` uint8 [N, S, S, 1 or 3], ``mask_counts`` str [N], ``region_box`` float32 [N, 4],
                ``height`` and ``width``.

        Returns:
            The batch without ``pixels`` and with ``tokens`` float16 [N, L, D], ``focus`` float16 [N, L-1] and,
            if asked for, ``region_tokens`` float16 [N, L, D]. A row whose tokens are not finite (or too large for
            float16) fails at ``embed``.
        """
        out = writable({name: column for name, column in batch.items() if name != "pixels"})
        rows, total = well(batch), len(batch["image_id"])
        patches = self.tower.grid[0] * self.tower.grid[1]
        out["tokens"] = np.zeros((total, patches + 1, self.tower.width), np.float16)
        out["focus"] = np.zeros((total, patches), np.float16)
        if self.region:
            out["region_tokens"] = np.zeros_like(out["tokens"])
        for start in range(0, len(rows), self.batch_size):
            self._embed(batch, out, rows[start : start + self.batch_size])
        return out

    @torch.inference_mode()
    def _embed(self, batch: Mapping[str, Any], out: Batch, rows: np.ndarray) -> None:
        side = self.tower.image_size
        masks = [decode_mask(batch["mask_counts"][row], batch["height"][row], batch["width"][row]) for row in rows]
        covered = torch.from_numpy(np.stack([cover(mask, side, side) for mask in masks])).to(self.device)
        images = self.tower.normalise(torch.from_numpy(np.ascontiguousarray(batch["pixels"][rows])).to(self.device))
        tokens = {"tokens": self._lower(images)}
        if self.region:
            regions = [self.tower.normalise(self._zoom(batch["pixels"][row], batch["region_box"][row])) for row in rows]
            tokens["region_tokens"] = self._lower(torch.cat(regions))
        cells = torch.nn.functional.adaptive_avg_pool2d(covered[:, None], self.tower.grid)
        out["focus"][rows] = cells.flatten(1).half().cpu().numpy()
        for name, value in tokens.items():
            out[name][rows] = value
        for row in rows:
            if not all(np.isfinite(out[name][row]).all() for name in tokens):
                fail(out, row, "embed", "NotFinite", "CLIP gave tokens that are not finite in float16 for this image")

    def _zoom(self, pixels: np.ndarray, box: np.ndarray) -> torch.Tensor:
        """The square about a box of pixels uint8 [S, S, c], uint8 [1, s, s, c]."""
        left, top, side = square_about(box, len(pixels), _MARGIN)
        part = pixels[None, top : top + side, left : left + side]
        return torch.from_numpy(np.ascontiguousarray(part)).to(self.device)

    def _lower(self, images: torch.Tensor) -> np.ndarray:
        return self.tower.lower(images).half().cpu().numpy()
