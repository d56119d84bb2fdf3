"""The image tower of a CLIP, opened between its blocks.

This module stops the tower at a block, continues from there, and steers the attention of CLS on the way. CLS is the
class token, whose last state becomes the image embedding. Weights and modules are those of open_clip, or of timm where
open_clip wraps one of timm's trunks, as in BiomedCLIP (``stages.layouts``).

Above the cut only CLS is steered. The patches stay as the frozen tower has them. Their keys and values are therefore
computed once for an image, however often prompts are tuned on it.

In the shapes, B is the number of images, L of tokens (CLS and L-1 patches), and D the width of the tower.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from medfocus.stages import torchvision_ops  # noqa: F401  before open_clip

# isort: split
from open_clip.transform import PreprocessCfg

from medfocus.stages.layouts import LAYOUTS, Block, Layout


class CachedTokens(NamedTuple):
    """B images at the cut: all that CLS needs to pass the blocks above it.

    Attributes:
        cls: float [B, D], the CLS token that leaves the last block below the cut.
        keys_values: float [B, blocks, 2, heads, L-1, D / heads], keys and values of the patches in each block above
            the cut.
    """

    cls: torch.Tensor
    keys_values: torch.Tensor


class ImageTower(nn.Module):
    """A vision transformer with CLS pooling, run in two parts.

    ``upper(cache_tokens(lower(images)))`` equals the model's own ``encode_image`` (not normalised).

    Args:
        clip: a CLIP whose image tower is open_clip's ``VisionTransformer``, or timm's in open_clip's ``TimmModel``.
        cut: number of blocks in the lower part, from 1 to one less than the tower has.

    Raises:
        ValueError: the tower is of another kind, or has too few blocks for the cut.
    """

    def __init__(self, clip: Any, cut: int):
        super().__init__()
        visual = clip.visual
        fitting = [layout for layout in LAYOUTS if layout.fits(visual)]
        if not fitting:
            raise ValueError(
                f"image tower {type(visual).__name__} is not a plain ViT with CLS pooling; choose another model"
            )
        layout: Layout = fitting[0](visual)
        if not 1 <= cut < len(layout.blocks):
            raise ValueError(
                f"clip.cut is {cut}, the tower has {len(layout.blocks)} blocks; choose 1 to {len(layout.blocks) - 1}"
            )
        self.visual: Any = visual
        self.layout = layout
        self.cut = cut

    @property
    def blocks(self) -> list[Block]:
        """The blocks above the cut, lowest first."""
        return [self.layout.open(block) for block in self.layout.blocks[self.cut :]]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.layout.grid

    @property
    def width(self) -> int:
        """D, the width of the tower."""
        return self.layout.width

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return self.blocks[0].heads

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the tower takes."""
        return int(self.visual.image_size[0])

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert pixels to the tower's input.

        Images are resized as open_clip's own transform does (bicubic, antialiased, rounded to 8 bits) and normalised
        by the model's mean and standard deviation.

        Args:
            pixels: uint8 [B, S, S, 1 or 3].

        Returns:
            Float32 [B, 3, s, s], s is ``image_size``.
        """
        images = pixels.permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1)
        side = self.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).round().clamp(0, 255)
        preprocess = PreprocessCfg(**getattr(self.visual, "preprocess_cfg", {}))
        mean = torch.tensor(preprocess.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(preprocess.std, device=images.device).view(1, 3, 1, 1)
        return (images / 255 - mean) / std

    def lower(self, images: torch.Tensor) -> torch.Tensor:
        """Run the blocks below the cut.

        Args:
            images: float [B, 3, s, s] (``normalise``).

        Returns:
            Tokens float [B, L, D], CLS first.
        """
        tokens = self.layout.embed(images)
        for block in self.layout.blocks[: self.cut]:
            tokens = block(tokens)
        return tokens

    @torch.no_grad()
    def cache_tokens(self, tokens: torch.Tensor) -> CachedTokens:
        """Compute the keys and values of the patches in each block above the cut, without a gradient.

        Args:
            tokens: float [B, L, D], CLS first, as they leave ``lower``.

        Returns:
            The cached tokens of the B images.
        """
        keys_values = []
        cls = tokens[:, 0]
        for index, block in enumerate(self.blocks):
            query, key, value = _project(block, block.norm(tokens))
            keys_values.append(torch.stack([key[:, :, 1:], value[:, :, 1:]], 1))
            if index < len(self.blocks) - 1:
                attention = F.scaled_dot_product_attention(query, key, value)
                tokens = tokens + block.scale(block.out(_join_heads(attention)))
                tokens = tokens + block.feed_forward(tokens)
        return CachedTokens(cls, torch.stack(keys_values, 1))

    def upper(
        self,
        cached: CachedTokens,
        bias: list[torch.Tensor] | None = None,
        prompts: list[torch.Tensor] | None = None,
        gates: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Run CLS through the blocks above the cut, where it attends to the patches of the frozen tower.

        Args:
            cached: the cached tokens of B images.
            bias: for each block float [B, L-1], added to the logits of the attention from CLS to the patches.
            prompts: for each block float [V, D], visual prompt tokens that CLS also attends to.
            gates: for each block float [heads], the gate of the prompts; at 0 they have no effect.

        Returns:
            Image embeddings float [B, E], not normalised.
        """
        cls = cached.cls[:, None]
        for index, block in enumerate(self.blocks):
            keys, values = cached.keys_values[:, index].unbind(1)
            query, key, value = _project(block, block.norm(cls))
            block_bias = None if bias is None else bias[index][:, None, None]
            attention = _attend_to_patches(query, key, value, keys, values, block_bias)
            if prompts is not None and gates is not None:
                attention = attention + _attend_to_prompts(block, query, prompts[index], gates[index])
            cls = cls + block.scale(block.out(_join_heads(attention)))
            cls = cls + block.feed_forward(cls)
        return self.layout.head(cls)


def _attend_to_patches(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of CLS to itself and to the patches.

    The two parts stay apart: to join CLS's own key and value to those of the patches would copy all of these.

    Args:
        query: float [B, heads, 1, D / heads], of CLS.
        key: the same shape, of CLS.
        value: the same shape, of CLS.
        keys: float [B, heads, L-1, D / heads], of the patches.
        values: the same shape, of the patches.
        bias: float [B, 1, 1, L-1], added to the logits of the patches.

    Returns:
        Float [B, heads, 1, D / heads].
    """
    query = query * query.shape[-1] ** -0.5
    patch_logits = query @ keys.transpose(-1, -2)
    if bias is not None:
        patch_logits = patch_logits + bias
    own_logit = (query * key).sum(-1, keepdim=True)
    share = torch.cat([own_logit, patch_logits], -1).softmax(-1)
    return share[..., :1] * value + share[..., 1:] @ values


def _attend_to_prompts(block: Block, query: torch.Tensor, prompts: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Gated attention of CLS to the prompts (arXiv 2303.16199, section 3.2).

    Args:
        block: the block.
        query: float [B, heads, 1, D / heads], of CLS.
        prompts: float [V, D].
        gate: float [heads], before the tanh.

    Returns:
        Float [B, heads, 1, D / heads].
    """
    _, key, value = _project(block, block.norm(prompts)[None])
    key, value = (part.expand(len(query), -1, -1, -1) for part in (key, value))
    return torch.tanh(gate)[:, None, None] * F.scaled_dot_product_attention(query, key, value)


def _project(block: Block, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value [B, heads, L, D / heads] of the attention of a block, of tokens [B, L, D] after its norm."""
    parts = F.linear(tokens, block.weight, block.bias).chunk(3, -1)
    return tuple(part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in parts)


def _join_heads(attention: torch.Tensor) -> torch.Tensor:
    """The output of attention, [B, heads, L, D / heads], with its heads side by side, [B, L, D]."""
    return attention.transpose(1, 2).flatten(2)
