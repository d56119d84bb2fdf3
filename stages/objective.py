"""The loss of prompt tuning."""

import torch
import torch.nn.functional as F


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
