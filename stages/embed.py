"""Tokens of the frozen lower part of CLIP, of the image and of its best region, and the mask's share of each patch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from medfocus.stages.augment import View, augment
from medfocus.stages.batch import Batch, fail, well, writable
from medfocus.stages.masks import cover, decode_mask, square_about
from medfocus.stages.tower import ImageTower

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
        views: of each image; the first is the image itself, the others are augmented.
    """

    def __init__(self, tower: ImageTower, *, region: bool, batch_size: int, views: int = 1):
        self.tower = tower.eval()
        self.device = next(tower.parameters()).device
        self.region = region
        self.batch_size = batch_size
        self.views = views

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        """Embed a batch.

        Args:
            batch: ``pixels`` uint8 [N, S, S, 1 or 3], ``mask_counts`` str [N], ``region_box`` float32 [N, 4],
                ``height`` and ``width``.

        Returns:
            The batch without ``pixels`` and with, for V views, ``tokens`` float16 [N, V, L, D], ``focus`` float16
            [N, V, L-1] and, if asked for, ``region_tokens`` float16 [N, V, L, D]. A row whose tokens are not finite (or
            too large for float16) fails at ``embed``.
        """
        out = writable({name: column for name, column in batch.items() if name != "pixels"})
        rows, total = well(batch), len(batch["image_id"])
        patches = self.tower.grid[0] * self.tower.grid[1]
        out["tokens"] = np.zeros((total, self.views, patches + 1, self.tower.width), np.float16)
        out["focus"] = np.zeros((total, self.views, patches), np.float16)
        if self.region:
            out["region_tokens"] = np.zeros_like(out["tokens"])
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            seen = [self._views(batch, row) for row in chosen]
            for number, views in enumerate(zip(*seen, strict=True)):
                self._embed(views, out, chosen, number)
        for row in rows:
            if not all(np.isfinite(out[name][row]).all() for name in ("tokens", "region_tokens") if name in out):
                fail(out, row, "embed", "NotFinite", "CLIP gave tokens that are not finite in float16 for this image")
        return out

    def _views(self, batch: Mapping[str, Any], row: int) -> list[View]:
        """The image itself, which covers cells of the tower's grid exactly, and the augmented ones."""
        pixels, box = batch["pixels"][row], batch["region_box"][row]
        mask = decode_mask(batch["mask_counts"][row], batch["height"][row], batch["width"][row])
        views = [View(pixels, cover(mask, *self.tower.grid), box)]
        if self.views > 1:  # at the image's own size, so that the mask goes where the pixels go
            whole, name = View(pixels, cover(mask, *pixels.shape[:2]), box), str(batch["image_id"][row])
            views += [augment(whole, name, number) for number in range(1, self.views)]
        return views

    def _embed(self, views: Sequence[View], out: Batch, rows: np.ndarray, number: int) -> None:
        images = self.tower.normalise(self._tensor(np.stack([view.pixels for view in views])))
        out["tokens"][rows, number] = self._lower(images)
        if self.region:
            parts = [self.tower.normalise(self._tensor(_zoom(view)[None])) for view in views]
            out["region_tokens"][rows, number] = self._lower(torch.cat(parts))
        covered = torch.from_numpy(np.stack([view.cover for view in views]))[:, None]
        out["focus"][rows, number] = F.adaptive_avg_pool2d(covered, self.tower.grid).flatten(1).half().numpy()

    def _tensor(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)

    @torch.inference_mode()
    def _lower(self, images: torch.Tensor) -> np.ndarray:
        return self.tower.lower(images).half().cpu().numpy()


def _zoom(view: View) -> np.ndarray:
    """The square about a view's best region, uint8 [s, s, c]."""
    left, top, side = square_about(view.box, len(view.pixels), _MARGIN)
    return view.pixels[top : top + side, left : left + side]
