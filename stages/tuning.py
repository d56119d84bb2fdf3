"""Prompt tuning: the loss, the learning rate schedule, and one epoch."""

from collections.abc import Callable, Iterable
from math import cos, pi
from typing import NamedTuple

import torch
import torch.nn.functional as F

from medfocus.stages.tower import CachedTokens


class TrainingBatch(NamedTuple):
    """One batch of B images for prompt tuning.

    Attributes:
        whole: the cached tokens of the whole images.
        focus: float [B, L-1] in 0..1, the share of each patch that the focus mask covers.
        region: the cached tokens of the best regions; None where the model does not use them.
        target: int64 [B], index of the class.
    """

    whole: CachedTokens
    focus: torch.Tensor
    region: CachedTokens | None
    target: torch.Tensor


def anneal(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of each parameter group: a cosine from its ``peak`` to 0 (arXiv 1608.03983, equation 5).

    The rate depends on the share alone, so a resumed training has the rates of one that was not interrupted. torch's
    ``CosineAnnealingLR`` computes each rate from the previous one and differs in the last bits.

    Args:
        optimizer: an optimizer whose parameter groups have a ``peak`` (``PromptedCLIP.parameter_groups``).
        share: share of all epochs that have passed, 0..1.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * 0.5 * (1 + cos(pi * share))


def train_epoch(
    logits: Callable[[TrainingBatch], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[TrainingBatch],
    contrastive_weight: float,
    prior: Callable[[], torch.Tensor],
) -> tuple[float, int]:
    """Take one optimizer step for each batch.

    Args:
        logits: computes the class logits of a batch, float [B, C].
        optimizer: the optimizer of the learned part.
        batches: the batches of the epoch.
        contrastive_weight: lambda of ``prompt_loss``, 0..1.
        prior: computes the term of the loss that depends on the learned part alone (``PromptedCLIP.prior``).

    Returns:
        The sum of the losses, and the number of batches.
    """
    total, steps = 0.0, 0
    for batch in batches:
        loss = prompt_loss(logits(batch), batch.target, contrastive_weight) + prior()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, steps = total + loss.item(), steps + 1
    return total, steps


def prompt_loss(logits: torch.Tensor, target: torch.Tensor, contrastive_weight: float) -> torch.Tensor:
    """The objective ``lambda * contrastive + (1 - lambda) * cross-entropy`` (arXiv 2501.03839, prompt tuning).

    The contrastive term is that of CLIP, between the images of a batch and the sentences of their classes. Images of
    one class share a sentence. The target of each direction is therefore uniform over all matches in the batch (arXiv
    2204.03610, equation 3).

    Args:
        logits: float [B, C], scaled cosine similarities of images and classes.
        target: int64 [B], index of the class of each image.
        contrastive_weight: lambda, 0..1.

    Returns:
        Scalar: the mean loss over the batch.
    """
    classification = F.cross_entropy(logits, target)
    pairs = logits[:, target]  # [B, B]: image i and the sentence of the class of image j
    same = (target[:, None] == target[None, :]).to(logits.dtype)
    matches = same / same.sum(1, keepdim=True)
    contrastive = 0.5 * (F.cross_entropy(pairs, matches) + F.cross_entropy(pairs.T, matches))
    return contrastive_weight * contrastive + (1 - contrastive_weight) * classification
