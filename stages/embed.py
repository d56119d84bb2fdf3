"""From pixels to the tokens of the frozen part of CLIP below the cut."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from medfocus.stages.augment import View, augment
from medfocus.stages.batch import Batch, fail, well, writable
from medfocus.stages.masks import cover, decode_mask, square_about
from medfocus.stages.tower import ImageTower

# Surroundings of a region on each side of its square, as a share of the longer side of its box.
_MARGIN = 0.15


class Embed:
    """Runs the part of CLIP below the cut on each image, and on its best region where the model uses it.

    The region is a crop: the square about it, with a margin, at the full resolution of the tower. Its surroundings in
    the square are kept, since the outline of a lesion against its surroundings tells its kind.

    Resources:
        The device of the tower: one GPU, or CPU threads of torch. One pass takes ``batch_size`` images. In the shapes
        V is the number of views, L that of tokens (CLS and L-1 patches), and D the width of the tower.

    Columns taken:
        pixels: uint8 [N, S, S, 1 or 3], S in pixels.
        mask_counts: str [N], COCO run-length counts of the focus mask at height x width.
        region_box: float32 [N, 4], left, top, right and bottom of the best region as shares of the sides, 0..1.
        height: int32 [N], of the upright image in pixels.
        width: int32 [N], of the upright image in pixels.

    Columns added:
        tokens: float16 [N, V, L, D], CLIP tokens at the cut, CLS first.
        focus: float16 [N, V, L-1], share of each patch that the focus mask covers, 0..1.
        region_tokens: float16 [N, V, L, D], the tokens of the best region; only with ``region``.

    Columns removed:
        pixels.

    Errors:
        NotFinite: a token is not finite, or is too large for float16.

    Args:
        tower: image tower of a frozen CLIP.
        region: whether to add the tokens of the best region.
        batch_size: images in one pass.
        views: views of each image; the first is the image itself, the others are augmented (``stages.augment``).
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
            batch: the columns taken, and the failure columns; failed rows are skipped. With several views it also has
                ``image_id`` str [N], which seeds the augmentation.

        Returns:
            A copy of the batch with the columns added and without those removed.
        """
        out = writable({name: column for name, column in batch.items() if name != "pixels"})
        rows, total = well(batch), len(batch["image_id"])
        patches = self.tower.grid[0] * self.tower.grid[1]
        out["tokens"] = np.zeros((total, self.views, patches + 1, self.tower.width), np.float16)
        out["focus"] = np.zeros((total, self.views, patches), np.float16)
        if self.region:
            out["region_tokens"] = np.zeros_like(out["tokens"])
        for start in range(0, len(rows), self.batch_size):
            chunk = rows[start : start + self.batch_size]
            views_of_rows = [self._views(batch, row) for row in chunk]
            for number, views in enumerate(zip(*views_of_rows, strict=True)):
                self._embed(views, out, chunk, number)
        for row in rows:
            if not all(np.isfinite(out[name][row]).all() for name in ("tokens", "region_tokens") if name in out):
                fail(out, row, "embed", "NotFinite", "CLIP gave tokens that are not finite in float16 for this image")
        return out

    def _views(self, batch: Mapping[str, Any], row: int) -> list[View]:
        """The views of one image. The cover of the first is exact on the tower's grid, that of the others on pixels."""
        pixels, box = batch["pixels"][row], batch["region_box"][row]
        mask = decode_mask(batch["mask_counts"][row], batch["height"][row], batch["width"][row])
        views = [View(pixels, cover(mask, *self.tower.grid), box)]
        if self.views > 1:  # a cover of the image's own size is transformed exactly as the pixels are
            original, name = View(pixels, cover(mask, *pixels.shape[:2]), box), str(batch["image_id"][row])
            views += [augment(original, name, number) for number in range(1, self.views)]
        return views

    def _embed(self, views: Sequence[View], out: Batch, rows: np.ndarray, number: int) -> None:
        """Write the tokens and the focus of one view of each of some rows into the batch."""
        images = self.tower.normalise(self._tensor(np.stack([view.pixels for view in views])))
        out["tokens"][rows, number] = self._lower(images)
        if self.region:
            crops = [self.tower.normalise(self._tensor(_crop_region(view)[None])) for view in views]
            out["region_tokens"][rows, number] = self._lower(torch.cat(crops))
        covers = torch.from_numpy(np.stack([view.cover for view in views]))[:, None]
        out["focus"][rows, number] = F.adaptive_avg_pool2d(covers, self.tower.grid).flatten(1).half().numpy()

    def _tensor(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels as a tensor on the device of the tower."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)

    @torch.inference_mode()
    def _lower(self, images: torch.Tensor) -> np.ndarray:
        """Tokens float16 [B, L, D] at the cut of images float32 [B, 3, s, s]."""
        tokens: np.ndarray = self.tower.lower(images).half().cpu().numpy()
        return tokens


def _crop_region(view: View) -> np.ndarray:
    """The square about the best region of a view, uint8 [s, s, c]."""
    left, top, side = square_about(view.box, len(view.pixels), _MARGIN)
    return view.pixels[top : top + side, left : left + side]
