"""The training recipe of the starter SAM2: on phantoms, from scratch; the encoder, then the decoder, then both.

The encoder first learns to segment lesions and the parts of the anatomy, with a linear head that is discarded
afterwards. Then the recipe is that of SAM (arXiv 2304.02643, appendix A): each image has a few targets, mostly lesions,
otherwise parts of the anatomy. The prompt of a target is its box, or a click in it or near it. The decoder predicts
three masks, and only the best one learns. When encoder and decoder learn together, a second round adds a click where
the first mask was wrong. The loss is that of SAM2: 20 focal + 1 dice + 1 L1 of the predicted IoU (arXiv 2408.00714,
appendix D.2).

Some clicks have an empty target: those in the background or on a decoy. Only the predicted IoU learns from them, so
that the region finder ranks their masks last. In the last part of the training a click on the anatomy has an empty
target too; before, its sharp masks ranked above those of lesions in two images of five. The focal loss has the same
weight inside and outside an outline. With the usual weight of a quarter inside, masks of small lesions were too small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from medfocus.stages.batched_sam2 import ImageFeatures, decode_prompts, encode_images
from medfocus.stages.weights import VIDEO_PARTS, load_sam2
from medfocus.starter.anatomy import PARTS
from medfocus.starter.phantoms import Phantom

ARCHITECTURE = Path(__file__).parent / "sam2"
"""The folder with the architecture of the model."""
TARGETS_PER_IMAGE = 4
"""Prompts of each image in one step."""
MASK_SIDE = 160
"""Side in pixels of the masks that the loss compares: half of the input's; the decoder's masks have a quarter."""
# Share of the steps from which clicks on the anatomy have an empty target, and the share of such and other empty
# targets from then on.
_LESIONS_ALONE, _ELSEWHERE_SHARE = 0.8, 0.5
# Weight of the mean square of the image embedding while the encoder learns. Position codes have size 1, and a large
# embedding would hide them.
_EMBEDDING_WEIGHT = 0.05
# Shares of the prompts that are boxes, of the clicks that are moved (and how far, as a share of the side), of the
# targets that are lesions, and of the targets that are empty.
_BOX_SHARE, _JITTER_SHARE, _JITTER, _LESION_SHARE, _EMPTY_SHARE = 0.2, 0.5, 0.03, 0.85, 0.2
# Bounds on the share of the image that a part of the anatomy covers to be a target.
_LEAST_AREA, _LARGEST_AREA = 0.002, 0.5


@dataclass(frozen=True)
class Prompts:
    """N targets, each with one prompt.

    Attributes:
        targets: bool [N, S, S].
        points: float32 [N, 2, 2], x and y in pixels.
        labels: int32 [N, 2]: 1 foreground, 2 and 3 the corners of a box, -1 no point.
    """

    targets: torch.Tensor
    points: torch.Tensor
    labels: torch.Tensor

    def take(self, rows: torch.Tensor) -> "Prompts":
        """The targets and prompts at the given indices, int64 [M]."""
        return Prompts(self.targets[rows], self.points[rows], self.labels[rows])


class Recipe:
    """The model, its training loss, and the weights that are saved.

    Args:
        device: ``cpu`` or ``cuda``.
        seed: seed of the weights and of the prompts.
        start: weights of an earlier training; None draws random weights.

    Attributes:
        batch_size: phantoms in one step.
        learning_rate: peak learning rate.
        image_size: side of a phantom in pixels.
        decoys: whether the phantoms have decoys.
        encoder_until: share of the steps until which the encoder learns alone.
        decoder_until: share of the steps until which the decoder then learns alone.
        dense_head: the linear head on the encoder's features; it is not saved.
    """

    batch_size = 8
    learning_rate = 1.2e-3
    image_size = 320
    decoys = True
    encoder_until = 1 / 6
    decoder_until = 0.4

    def __init__(self, device: str, seed: int, start: Path | None):
        self.model = load_sam2(ARCHITECTURE, start, device=device, seed=seed).train()
        self.parameters = [
            value.requires_grad_() for name, value in self.model.named_parameters() if not name.startswith(VIDEO_PARTS)
        ]
        if start is None:
            self._align_cross_attention()
        widths = [self.model.sam_mask_decoder.conv_s0.out_channels, self.model.sam_mask_decoder.conv_s1.out_channels]
        self.dense_head = torch.nn.ModuleList(
            torch.nn.Conv2d(width, 1 + len(PARTS), 1) for width in (*widths, self.model.hidden_dim)
        ).to(device)
        self.parameters += list(self.dense_head.parameters())
        self.device = device
        self.random = np.random.default_rng(seed)

    @torch.no_grad()
    def _align_cross_attention(self) -> None:
        """Give queries and keys of the decoder's cross-attentions the same projection at the start.

        Both carry a position code, so a prompt attends to places near it from the first step. With two random
        projections it takes hundreds of steps until masks depend on the prompt at all.
        """
        transformer = self.model.sam_mask_decoder.transformer
        attentions = [transformer.final_attn_token_to_image]
        for layer in transformer.layers:
            attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        for attention in attentions:
            attention.k_proj.weight.copy_(attention.q_proj.weight)

    def loss(self, phantoms: Sequence[Phantom], share: float) -> torch.Tensor:
        """The loss of a batch.

        Args:
            phantoms: the batch.
            share: share of all steps that have passed, 0..1; it decides which part of the recipe applies.

        Returns:
            Scalar.
        """
        pixels = torch.from_numpy(np.stack([phantom.image for phantom in phantoms])[..., None])
        decoder_alone = self.encoder_until <= share < self.decoder_until
        with torch.set_grad_enabled(not decoder_alone):
            features = encode_images(self.model, pixels)
        if share < self.encoder_until:
            return self._dense_loss(features, phantoms)
        return self._prompt_loss(features, phantoms, correct=not decoder_alone, lesions_alone=share >= _LESIONS_ALONE)

    def _dense_loss(self, features: ImageFeatures, phantoms: Sequence[Phantom]) -> torch.Tensor:
        """Binary cross-entropy and dice of segmenting lesions and each part of the anatomy with the linear head."""
        levels = [*features.fine, features.embedding]
        size = levels[0].shape[-2:]
        level_logits = [
            F.interpolate(layer(level), size, mode="bilinear", align_corners=False)
            for layer, level in zip(self.dense_head, levels, strict=True)
        ]
        logits = torch.stack(level_logits).sum(0)
        truth = np.zeros((len(phantoms), 1 + len(PARTS), *phantoms[0].image.shape), np.float32)
        for row, phantom in enumerate(phantoms):
            truth[row, 0] = phantom.lesions.any(0) if len(phantom.lesions) else 0
            for name, mask in phantom.anatomy.items():
                truth[row, 1 + PARTS.index(name)] = mask
        target = F.interpolate(torch.from_numpy(truth).to(self.device), size, mode="area")
        probability = logits.sigmoid()
        overlap = (probability * target).sum((0, 2, 3))
        dice = 1 - (2 * overlap + 1) / (probability.sum((0, 2, 3)) + target.sum((0, 2, 3)) + 1)
        size_penalty = _EMBEDDING_WEIGHT * features.embedding.square().mean()
        return F.binary_cross_entropy_with_logits(logits, target) + dice[0] + dice.mean() + size_penalty

    def _prompt_loss(
        self, features: ImageFeatures, phantoms: Sequence[Phantom], correct: bool, lesions_alone: bool
    ) -> torch.Tensor:
        """SAM2's loss, averaged over the targets of the batch and, with ``correct``, over both rounds."""
        prompts = self._prompts(phantoms, lesions_alone)
        features = features.repeat(TARGETS_PER_IMAGE)
        targets = _shrink(prompts.targets)
        logits, iou = decode_prompts(self.model, features, prompts.points, prompts.labels)
        first, best = mask_loss(logits, iou, targets)
        if not correct:
            return first
        filled = targets.flatten(1).any(1).nonzero()[:, 0]
        previous = logits[filled, best[filled]][:, None].detach()
        prompts, targets, features = prompts.take(filled), targets[filled], features.take(filled)
        points, labels = self._correct(prompts, previous, targets)
        masks = previous.clamp(-32, 32)
        logits, iou = decode_prompts(self.model, features, points, labels, masks=masks, multimask=False)
        second, _ = mask_loss(logits, iou, targets)
        return (first + second) / 2

    def state(self) -> dict[str, torch.Tensor]:
        """The weights that are saved: those that an image model needs, in half precision."""
        return {
            name: value.half().contiguous()
            for name, value in self.model.state_dict().items()
            if not name.startswith(VIDEO_PARTS)
        }

    def _prompts(self, phantoms: Sequence[Phantom], lesions_alone: bool) -> Prompts:
        """Targets and prompts for each phantom; with ``lesions_alone`` only lesions have targets that are not empty."""
        choose = self._choose_lesion if lesions_alone else self._choose_target
        pairs = [choose(phantom) for phantom in phantoms for _ in range(TARGETS_PER_IMAGE)]
        prompts = [self._prompt(area, loose=bool(target.any())) for target, area in pairs]
        return Prompts(
            torch.from_numpy(np.stack([target for target, _ in pairs])).to(self.device),
            torch.tensor(np.array([points for points, _ in prompts]), dtype=torch.float32, device=self.device),
            torch.tensor([labels for _, labels in prompts], dtype=torch.int, device=self.device),
        )

    def _choose_target(self, phantom: Phantom) -> tuple[np.ndarray, np.ndarray]:
        """A target and the area of its prompt, bool [S, S] each.

        The area is the target or, for an empty target, a decoy or the background.
        """
        parts = [mask for mask in phantom.anatomy.values() if _LEAST_AREA < mask.mean() < _LARGEST_AREA]
        if self.random.uniform() < _EMPTY_SHARE:
            area = self._decoy_or_background(phantom, parts)
            return np.zeros_like(area), area
        lesion = len(phantom.lesions) and self.random.uniform() < _LESION_SHARE
        pool = phantom.lesions if lesion or not parts else parts
        target = pool[int(self.random.integers(len(pool)))]
        return target, target

    def _choose_lesion(self, phantom: Phantom) -> tuple[np.ndarray, np.ndarray]:
        """As ``_choose_target``, with lesions as the only targets; the area of an empty one is any other place."""
        if len(phantom.lesions) and self.random.uniform() >= _ELSEWHERE_SHARE:
            target = phantom.lesions[int(self.random.integers(len(phantom.lesions)))]
            return target, target
        healthy = ~np.any([*phantom.lesions, np.zeros_like(phantom.image, bool)], axis=0)
        areas = [mask & healthy for mask in (*phantom.decoys, *phantom.anatomy.values())] + [healthy]
        areas = [mask for mask in areas if mask.any()]
        area = areas[int(self.random.integers(len(areas)))]
        return np.zeros_like(area), area

    def _decoy_or_background(self, phantom: Phantom, parts: Sequence[np.ndarray]) -> np.ndarray:
        """A decoy, in half of the cases where there is one, or the background without lesions and parts."""
        if len(phantom.decoys) and self.random.uniform() < 0.5:
            return phantom.decoys[int(self.random.integers(len(phantom.decoys)))]
        return ~np.any([*phantom.lesions, *parts], axis=0)

    def _prompt(self, mask: np.ndarray, loose: bool) -> tuple[np.ndarray, tuple[int, int]]:
        """Points float [2, 2] and labels of a click in a mask; a loose prompt may lie near it, or be its box."""
        rows, columns = np.nonzero(mask)
        if loose and self.random.uniform() < _BOX_SHARE:
            corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], float)
            return corners + self.random.normal(0, 0.01 * self.image_size, (2, 2)), (2, 3)
        place = int(self.random.integers(len(rows)))
        point = np.array([columns[place] + 0.5, rows[place] + 0.5])
        if loose and self.random.uniform() < _JITTER_SHARE:
            point = np.clip(point + self.random.normal(0, _JITTER * self.image_size, 2), 0, self.image_size)
        return np.stack([point, np.zeros(2)]), (1, -1)

    def _correct(
        self, prompts: Prompts, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points and labels of the prompts with one more click each, drawn from where the mask is wrong."""
        predicted = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
        wrong = (predicted ^ (targets > 0)).flatten(1).float()
        wrong = torch.where(wrong.any(1, keepdim=True), wrong, targets.flatten(1))
        place = torch.multinomial(wrong, 1)
        point = torch.cat([place % MASK_SIDE, place // MASK_SIDE], 1)[:, None] + 0.5
        label = targets.flatten(1).gather(1, place).int()
        scale = self.image_size / MASK_SIDE
        return torch.cat([prompts.points, point * scale], 1), torch.cat([prompts.labels, label], 1)


def _shrink(masks: torch.Tensor) -> torch.Tensor:
    """Masks [N, S, S] as float [N, MASK_SIDE, MASK_SIDE], 0 or 1."""
    return F.interpolate(masks[:, None].float(), (MASK_SIDE, MASK_SIDE), mode="area")[:, 0].round()


def mask_loss(logits: torch.Tensor, iou: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SAM2's loss of N prompts with M masks each (arXiv 2408.00714, appendix D.2).

    Only the best mask of a prompt learns its shape, and every mask its IoU. For an empty target no mask learns a shape,
    and the IoU is 0.

    Args:
        logits: float [N, M, h, w].
        iou: float [N, M], predicted IoU.
        targets: float [N, MASK_SIDE, MASK_SIDE], 0 or 1.

    Returns:
        The loss, a scalar, and the index of the best mask of each prompt, int64 [N].
    """
    logits = F.interpolate(logits, (MASK_SIDE, MASK_SIDE), mode="bilinear", align_corners=False)
    target = targets[:, None].expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    of_truth = probability * target + (1 - probability) * (1 - target)
    focal = (0.5 * (1 - of_truth) ** 2 * entropy).flatten(2).mean(2)
    overlap = (probability * target).flatten(2).sum(2)
    dice = 1 - (2 * overlap + 1) / (probability.flatten(2).sum(2) + target.flatten(2).sum(2) + 1)
    shape = 20 * focal + dice
    best = shape.argmin(1)
    with torch.no_grad():
        inside = logits > 0
        shared = (inside & (target > 0)).flatten(2).sum(2)
        true_iou = shared / (inside | (target > 0)).flatten(2).sum(2).clamp(min=1)
    filled = targets.flatten(1).any(1)
    shape_loss = (shape.gather(1, best[:, None])[:, 0] * filled).sum() / filled.sum().clamp(min=1)
    return shape_loss + (iou - true_iou).abs().mean(), best
