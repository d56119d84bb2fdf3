"""How the starter SAM2 is trained: on phantoms, from nothing, the encoder first, then the decoder, then both.

The encoder learns to tell lesions and the parts of the anatomy at every place, under a linear head that is thrown
away. Then the SAM recipe: each step shows images with a few targets each, mostly lesions, else anatomy. A target is
prompted by a click, near it as often as in it, or by its box; the decoder answers with three masks, of which the best
one learns (SAM, arXiv 2304.02643, appendix A). When both learn, a second round adds a click where the first went
wrong. The loss is SAM2's: 20 focal + 1 dice + 1 L1 on the predicted IoU (arXiv 2408.00714, appendix D.2). Some clicks
mean nothing, in the background or on a decoy: they have an empty target, which only the predicted IoU learns from, so
that the region finder ranks what they give last. In the last part anatomy means nothing either: its masks, sharp as
they are, were ranked above those of lesions in two images of five. The focal loss weighs both sides of an outline
alike: at its usual weight of a quarter for the inside, masks of small lesions came out too small.
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
TARGETS_PER_IMAGE = 4
# Shares of the steps after which the encoder, and then the decoder, has learned alone.
_SEEING, _POINTING = 1 / 6, 0.4
# Share of the steps after which lesions alone mean something, and the share of clicks elsewhere from then on.
_LESIONS_ALONE, _ELSEWHERE_SHARE = 0.8, 0.5
# Weight of the embedding's mean square while the encoder learns: beside a large one the code of a place, of size 1,
# would not be seen.
_SMALL = 0.05
# Side of the masks that are compared, half the input's; the decoder's are a quarter.
_COMPARED = 160
_BOX_SHARE, _JITTER_SHARE, _JITTER, _LESION_SHARE, _NOTHING_SHARE = 0.2, 0.5, 0.03, 0.85, 0.2
_LEAST_AREA, _LARGEST_AREA = 0.002, 0.5


@dataclass(frozen=True)
class Prompts:
    """Targets [N, S, S] bool with a prompt each: points float32 [N, 2, 2] and labels int32 [N, 2] (-1: no point)."""

    targets: torch.Tensor
    points: torch.Tensor
    labels: torch.Tensor

    def take(self, rows: torch.Tensor) -> "Prompts":
        return Prompts(self.targets[rows], self.points[rows], self.labels[rows])


class Recipe:
    """One training step and what is saved of the model."""

    batch_size = 8
    learning_rate = 1.2e-3
    image_size = 320
    decoys = True

    def __init__(self, device: str, seed: int, start: Path | None):
        self.model = load_sam2(ARCHITECTURE, start, device=device, seed=seed).train()
        self.parameters = [
            value.requires_grad_() for name, value in self.model.named_parameters() if not name.startswith(VIDEO_PARTS)
        ]
        if start is None:
            self._compare_places_alike()
        widths = [self.model.sam_mask_decoder.conv_s0.out_channels, self.model.sam_mask_decoder.conv_s1.out_channels]
        self.seeing = torch.nn.ModuleList(
            torch.nn.Conv2d(width, 1 + len(PARTS), 1) for width in (*widths, self.model.hidden_dim)
        ).to(device)
        self.parameters += list(self.seeing.parameters())
        self.device = device
        self.random = np.random.default_rng(seed)

    @torch.no_grad()
    def _compare_places_alike(self) -> None:
        """Let the decoder's cross-attentions project queries and keys alike at the start.

        Both carry the code of their place, so that a prompt meets what is near it from the first step; with two
        random projections it takes hundreds of steps until masks depend on the prompt at all.
        """
        transformer = self.model.sam_mask_decoder.transformer
        attentions = [transformer.final_attn_token_to_image]
        for layer in transformer.layers:
            attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
        for attention in attentions:
            attention.k_proj.weight.copy_(attention.q_proj.weight)

    def loss(self, phantoms: Sequence[Phantom], share: float) -> torch.Tensor:
        """Loss of a batch, after a share of all steps."""
        pixels = torch.from_numpy(np.stack([phantom.image for phantom in phantoms])[..., None])
        pointing = _SEEING <= share < _POINTING
        with torch.set_grad_enabled(not pointing):
            features = encode_images(self.model, pixels)
        if share < _SEEING:
            return self._seeing_loss(features, phantoms)
        return self._prompt_loss(features, phantoms, correct=not pointing, lesions_alone=share >= _LESIONS_ALONE)

    def _seeing_loss(self, features: ImageFeatures, phantoms: Sequence[Phantom]) -> torch.Tensor:
        """Binary cross-entropy and dice of telling lesions and each part of the anatomy at every place."""
        levels = [*features.fine, features.embedding]
        size = levels[0].shape[-2:]
        votes = [
            F.interpolate(layer(level), size, mode="bilinear", align_corners=False)
            for layer, level in zip(self.seeing, levels, strict=True)
        ]
        logits = torch.stack(votes).sum(0)
        truth = np.zeros((len(phantoms), 1 + len(PARTS), *phantoms[0].image.shape), np.float32)
        for row, phantom in enumerate(phantoms):
            truth[row, 0] = phantom.lesions.any(0) if len(phantom.lesions) else 0
            for name, mask in phantom.anatomy.items():
                truth[row, 1 + PARTS.index(name)] = mask
        target = F.interpolate(torch.from_numpy(truth).to(self.device), size, mode="area")
        chance = logits.sigmoid()
        overlap = (chance * target).sum((0, 2, 3))
        dice = 1 - (2 * overlap + 1) / (chance.sum((0, 2, 3)) + target.sum((0, 2, 3)) + 1)
        large = features.embedding.square().mean()
        return F.binary_cross_entropy_with_logits(logits, target) + dice[0] + dice.mean() + _SMALL * large

    def _prompt_loss(
        self, features: ImageFeatures, phantoms: Sequence[Phantom], correct: bool, lesions_alone: bool
    ) -> torch.Tensor:
        """SAM2's loss, averaged over the batch's targets and, where a click corrects the first, both rounds."""
        prompts = self._prompts(phantoms, lesions_alone)
        features = features.repeat(TARGETS_PER_IMAGE)
        targets = _shrink(prompts.targets)
        logits, iou = decode_prompts(self.model, features, prompts.points, prompts.labels)
        first, best = _mask_loss(logits, iou, targets)
        if not correct:
            return first
        something = targets.flatten(1).any(1).nonzero()[:, 0]
        chosen = logits[something, best[something]][:, None].detach()
        prompts, targets, features = prompts.take(something), targets[something], features.take(something)
        points, labels = self._correct(prompts, chosen, targets)
        logits, iou = decode_prompts(self.model, features, points, labels, masks=chosen.clamp(-32, 32), multimask=False)
        second, _ = _mask_loss(logits, iou, targets)
        return (first + second) / 2

    def state(self) -> dict[str, torch.Tensor]:
        """What an image needs, in half precision."""
        return {
            name: value.half().contiguous()
            for name, value in self.model.state_dict().items()
            if not name.startswith(VIDEO_PARTS)
        }

    def _prompts(self, phantoms: Sequence[Phantom], lesions_alone: bool) -> Prompts:
        choose = self._choose_among_lesions if lesions_alone else self._choose
        chosen = [choose(phantom) for phantom in phantoms for _ in range(TARGETS_PER_IMAGE)]
        made = [self._prompt(shown, loose=bool(target.any())) for target, shown in chosen]
        return Prompts(
            torch.from_numpy(np.stack([target for target, _ in chosen])).to(self.device),
            torch.tensor(np.array([points for points, _ in made]), dtype=torch.float32, device=self.device),
            torch.tensor([labels for _, labels in made], dtype=torch.int, device=self.device),
        )

    def _choose(self, phantom: Phantom) -> tuple[np.ndarray, np.ndarray]:
        """A target, bool [S, S], and what is prompted: the target, or, for an empty one, a decoy or the background."""
        parts = [mask for mask in phantom.anatomy.values() if _LEAST_AREA < mask.mean() < _LARGEST_AREA]
        if self.random.uniform() < _NOTHING_SHARE:
            shown = self._nothing(phantom, parts)
            return np.zeros_like(shown), shown
        lesion = len(phantom.lesions) and self.random.uniform() < _LESION_SHARE
        pool = phantom.lesions if lesion or not parts else parts
        target = pool[int(self.random.integers(len(pool)))]
        return target, target

    def _choose_among_lesions(self, phantom: Phantom) -> tuple[np.ndarray, np.ndarray]:
        """The same where only lesions mean something: what else is prompted is a decoy, a part, or any other place."""
        if len(phantom.lesions) and self.random.uniform() >= _ELSEWHERE_SHARE:
            target = phantom.lesions[int(self.random.integers(len(phantom.lesions)))]
            return target, target
        healthy = ~np.any([*phantom.lesions, np.zeros_like(phantom.image, bool)], axis=0)
        places = [mask & healthy for mask in (*phantom.decoys, *phantom.anatomy.values())] + [healthy]
        places = [mask for mask in places if mask.any()]
        shown = places[int(self.random.integers(len(places)))]
        return np.zeros_like(shown), shown

    def _nothing(self, phantom: Phantom, parts: Sequence[np.ndarray]) -> np.ndarray:
        """A decoy, as often as not where there is one, or all that belongs neither to a lesion nor to a part."""
        if len(phantom.decoys) and self.random.uniform() < 0.5:
            return phantom.decoys[int(self.random.integers(len(phantom.decoys)))]
        return ~np.any([*phantom.lesions, *parts], axis=0)

    def _prompt(self, mask: np.ndarray, loose: bool) -> tuple[np.ndarray, tuple[int, int]]:
        """A click in the mask; a loose one may miss it a little, or be its box."""
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
        """The prompts with one more click each, drawn from where the mask is wrong."""
        predicted = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
        wrong = (predicted ^ (targets > 0)).flatten(1).float()
        wrong = torch.where(wrong.any(1, keepdim=True), wrong, targets.flatten(1))
        place = torch.multinomial(wrong, 1)
        point = torch.cat([place % _COMPARED, place // _COMPARED], 1)[:, None] + 0.5
        label = targets.flatten(1).gather(1, place).int()
        scale = self.image_size / _COMPARED
        return torch.cat([prompts.points, point * scale], 1), torch.cat([prompts.labels, label], 1)


def _shrink(masks: torch.Tensor) -> torch.Tensor:
    return F.interpolate(masks[:, None].float(), (_COMPARED, _COMPARED), mode="area")[:, 0].round()


def _mask_loss(logits: torch.Tensor, iou: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of N prompts with M masks each, and which mask [N] was best; only that one learns its shape.

    Masks of an empty target learn no shape, only that their IoU is 0.
    """
    logits = F.interpolate(logits, (_COMPARED, _COMPARED), mode="bilinear", align_corners=False)
    target = targets[:, None].expand_as(logits)
    chance = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = chance * target + (1 - chance) * (1 - target)
    focal = (0.5 * (1 - right) ** 2 * entropy).flatten(2).mean(2)
    overlap = (chance * target).flatten(2).sum(2)
    dice = 1 - (2 * overlap + 1) / (chance.flatten(2).sum(2) + target.flatten(2).sum(2) + 1)
    shape = 20 * focal + dice
    best = shape.argmin(1)
    with torch.no_grad():
        inside = logits > 0
        shared = (inside & (target > 0)).flatten(2).sum(2)
        true_iou = shared / (inside | (target > 0)).flatten(2).sum(2).clamp(min=1)
    something = targets.flatten(1).any(1)
    learned = (shape.gather(1, best[:, None])[:, 0] * something).sum() / something.sum().clamp(min=1)
    return learned + (iou - true_iou).abs().mean(), best
