"""Prompt tuning: its loss, and an epoch of it."""

from collections.abc import Callable, Iterable
from math import cos, pi
from typing import NamedTuple

import torch
import torch.nn.functional as F

from medfocus.stages.tower import CachedTokens


class TrainingBatch(NamedTuple):
    """B images as the prompted model is shown them.

    ``whole`` and, where the model uses it, ``region`` are at the cut; ``focus`` is [B, L-1], the mask's share of each
    patch; ``target`` int64 [B], the class.
    """

    whole: CachedTokens
    focus: torch.Tensor
    region: CachedTokens | None
    target: torch.Tensor


def anneal(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of each group, a cosine from its ``peak`` to 0, after a share of all epochs."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * 0.5 * (1 + cos(pi * share))


def train_epoch(
    logits: Callable[[TrainingBatch], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[TrainingBatch],
    contrastive_weight: float,
    prior: Callable[[], torch.Tensor],
) -> tuple[float, int]:
    """A step of the optimizer for each batch; returns the sum of their losses, and how many they were.

    Args:
        logits: of the model, class logits float [B, C] of what it is shown.
        optimizer: of the learned part.
        batches: of an epoch.
        contrastive_weight: lambda of ``prompt_loss``.
        prior: what is added to each batch's loss for the learned part itself.
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
    """``lambda * contrastive + (1 - lambda) * cross-entropy`` (arXiv 2501.03839, the objective of prompt tuning).

    The contrastive term is CLIP's, between the images of a batch and the sentences of their classes. Images of one
    class share their sentence, so each direction's target is uniform over all of the batch that match (arXiv
    2204.03610, equation 3).

    Args:
        logits: float [B, C], scaled cosine similarity of images and classes.
        target: int64 [B], class of each image.
        contrastive_weight: lambda, 0..1.

    Returns:
        Scalar loss, the mean over the batch.
    """
    classification = F.cross_entropy(logits, target)
    pairs = logits[:, target]  # [B, B]: image i with the sentence of image j's class
    same = (target[:, None] == target[None, :]).to(logits.dtype)
    matches = same / same.sum(1, keepdim=True)
    contrastive = 0.5 * (F.cross_entropy(pairs, matches) + F.cross_entropy(pairs.T, matches))
    return contrastive_weight * contrastive + (1 - contrastive_weight) * classification
