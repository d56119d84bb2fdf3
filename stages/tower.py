"""The image tower of a CLIP, opened between its blocks.

Only what is needed to stop at a block, go on from there and steer attention on the way is here; weights and
modules are open_clip's own.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stages import torchvision_ops  # noqa: F401  before open_clip

# isort: split
from open_clip.transform import PreprocessCfg
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer


class ImageTower(nn.Module):
    """An open_clip vision transformer with CLS pooling, run in two parts.

    ``upper(lower(images))`` equals the model's own ``encode_image`` (not normalised).

    Args:
        clip: a CLIP whose image tower is open_clip's ``VisionTransformer``.
        cut: number of blocks in the lower part, from 1 to one less than the tower has.

    Raises:
        ValueError: the tower is of another kind, or has too few blocks for the cut.
    """

    def __init__(self, clip: Any, cut: int):
        super().__init__()
        visual = clip.visual
        plain = isinstance(visual, VisionTransformer) and visual.pool_type == "tok" and visual.attn_pool is None
        if not plain or not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
            raise ValueError(
                f"image tower {type(visual).__name__} is not a plain ViT with CLS pooling; choose another model"
            )
        blocks = len(visual.transformer.resblocks)
        if not 1 <= cut < blocks:
            raise ValueError(f"clip.cut is {cut}, the tower has {blocks} blocks; choose 1 to {blocks - 1}")
        self.visual: Any = visual
        self.cut = cut

    @property
    def blocks(self) -> list[ResidualAttentionBlock]:
        """The blocks above the cut, lowest first."""
        return list(self.visual.transformer.resblocks[self.cut :])

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.visual.grid_size

    @property
    def width(self) -> int:
        return self.visual.transformer.width

    @property
    def heads(self) -> int:
        return self.blocks[0].attn.num_heads

    @property
    def image_size(self) -> int:
        return int(self.visual.image_size[0])

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B, S, S, 1 or 3] to the tower's input, float32 [B, 3, s, s].

        Resized as open_clip's own transform does (bicubic, antialiased, rounded to 8 bits), normalised by the
        model's mean and standard deviation.
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
        """Tokens [B, L, D], CLS first, that leave the last block below the cut, of images float [B, 3, s, s]."""
        tokens = self.visual._embeds(images)
        for block in self.visual.transformer.resblocks[: self.cut]:
            tokens = block(tokens)
        return tokens

    def upper(
        self,
        tokens: torch.Tensor,
        bias: list[torch.Tensor] | None = None,
        prompts: list[torch.Tensor] | None = None,
        gates: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Image embeddings [B, E] of tokens [B, L, D] that come from ``lower``.

        Args:
            tokens: float [B, L, D].
            bias: for each block, added to the logits of the attention from CLS to each patch, [B, L-1].
            prompts: for each block, visual prompt tokens [V, D] that every token also attends to.
            gates: for each block, how much the prompts' part counts in each head, [heads]; 0 is not at all.
        """
        blocks = self.blocks
        for index, block in enumerate(blocks):
            hidden = block.ln_1(tokens)
            last = index == len(blocks) - 1
            if last:
                tokens = tokens[:, :1]  # only CLS is read from the last block
            mixed = _attend(
                block.attn,
                hidden[:, :1] if last else hidden,
                hidden,
                bias[index] if bias else None,
                block.ln_1(prompts[index]) if prompts else None,
                gates[index] if gates else None,
            )
            tokens = tokens + block.ls_1(mixed)
            tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        pooled, _ = self.visual._pool(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj


def _attend(
    attention: nn.MultiheadAttention,
    asking: torch.Tensor,
    hidden: torch.Tensor,
    bias: torch.Tensor | None,
    prompts: torch.Tensor | None,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    """Attention [B, Q, D] of the first Q tokens to all L, with a bias on the CLS row, plus gated prompts."""
    batch, queries, width = asking.shape
    heads = attention.num_heads
    weight, offset = attention.in_proj_weight, attention.in_proj_bias

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (heads, width // heads)).transpose(-2, -3)

    def key_and_value(x: torch.Tensor) -> Iterator[torch.Tensor]:
        return map(split, F.linear(x, weight[width:], offset[width:]).chunk(2, -1))

    query = split(F.linear(asking, weight[:width], offset[:width]))
    key, value = key_and_value(hidden)
    mask = None
    if bias is not None:
        mask = F.pad(bias[:, None, None, :], (1, 0, 0, queries - 1))  # zero for CLS itself and for all other rows
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if prompts is not None and gate is not None:
        prompt_key, prompt_value = key_and_value(prompts)
        logits = query @ prompt_key.transpose(-1, -2) / math.sqrt(width // heads)
        mixed = mixed + torch.tanh(gate)[:, None, None] * (logits.softmax(-1) @ prompt_value)
    return attention.out_proj(mixed.transpose(1, 2).reshape(batch, queries, width))
