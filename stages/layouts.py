"""The layouts of vision transformers: where open_clip and timm keep the parts of a block.

A tower of another library needs a class here with the methods of ``Layout``, and an entry in ``LAYOUTS``. In the
shapes, B is the number of images, L of tokens (CLS and L-1 patches), D the width of the tower, and E that of an
embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from medfocus.stages import torchvision_ops  # noqa: F401  before open_clip and timm

# isort: split
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer


@dataclass(frozen=True)
class Block:
    """The parts of one pre-norm transformer block (ViT, arXiv 2010.11929, equations 2 and 3).

    A block computes ``x + scale(out(attention(norm(x))))``, and of the result ``x + feed_forward(x)``.

    Attributes:
        norm: layer norm before the attention.
        weight: float [3 D, D], projections to query, key and value.
        bias: float [3 D], their biases; None where the projections have none.
        heads: number of attention heads.
        out: projection of the attention's output.
        scale: layer scale of the attention's output; the identity where the block has none.
        feed_forward: computes the residual branch of the MLP, with its layer norm and layer scale.
    """

    norm: nn.Module
    weight: torch.Tensor
    bias: torch.Tensor | None
    heads: int
    out: nn.Module
    scale: nn.Module
    feed_forward: Callable[[torch.Tensor], torch.Tensor]


class Layout(Protocol):
    """How a library arranges the parts of its vision transformer.

    Attributes:
        width: D, the width of the tower.
        grid: patches down and across.
        blocks: the library's transformer blocks, lowest first.
    """

    width: int
    grid: tuple[int, int]
    blocks: list[nn.Module]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D], CLS first, that enter the first block, of images float [B, 3, s, s]."""

    def open(self, block: Any) -> Block:
        """The parts of one of ``blocks``."""

    def head(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image embeddings [B, E] from the CLS token [B, 1, D] that leaves the last block."""


class OpenCLIPLayout:
    """The layout of open_clip's own vision transformer with CLS pooling.

    Args:
        visual: the image tower of a CLIP, for which ``fits`` is true.
    """

    def __init__(self, visual: Any):
        self.visual = visual
        self.blocks = list(visual.transformer.resblocks)
        self.width: int = visual.transformer.width
        self.grid: tuple[int, int] = visual.grid_size

    @staticmethod
    def fits(visual: Any) -> bool:
        """Whether an image tower has this layout."""
        plain = isinstance(visual, VisionTransformer) and visual.pool_type == "tok" and visual.attn_pool is None
        return plain and all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D], CLS first, that enter the first block, of images float [B, 3, s, s]."""
        tokens: torch.Tensor = self.visual._embeds(images)
        return tokens

    def open(self, block: Any) -> Block:
        """The parts of one of ``blocks``."""
        attention = block.attn
        return Block(
            norm=block.ln_1,
            weight=attention.in_proj_weight,
            bias=attention.in_proj_bias,
            heads=attention.num_heads,
            out=attention.out_proj,
            scale=block.ls_1,
            feed_forward=lambda tokens: block.ls_2(block.mlp(block.ln_2(tokens))),
        )

    def head(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image embeddings [B, E] from the CLS token [B, 1, D] that leaves the last block."""
        pooled, _ = self.visual._pool(tokens)
        embedding: torch.Tensor = pooled if self.visual.proj is None else pooled @ self.visual.proj
        return embedding


class TimmLayout:
    """The layout of a plain vision transformer of timm with CLS pooling, wrapped by open_clip.

    Args:
        visual: the image tower of a CLIP, for which ``fits`` is true.
    """

    def __init__(self, visual: Any):
        self.visual = visual
        self.trunk = visual.trunk
        self.blocks = list(self.trunk.blocks)
        self.width: int = self.trunk.embed_dim
        self.grid: tuple[int, int] = self.trunk.patch_embed.grid_size

    @staticmethod
    def fits(visual: Any) -> bool:
        """Whether an image tower has this layout."""
        trunk: Any = visual.trunk if isinstance(visual, TimmModel) else None
        if type(trunk) is not TimmVisionTransformer or trunk.global_pool != "token" or trunk.num_prefix_tokens != 1:
            return False
        if trunk.attn_pool is not None or trunk.dynamic_img_size:
            return False
        attentions = [block.attn for block in trunk.blocks if type(block) is TimmBlock]
        plain = all(
            type(attention) is Attention
            and attention.gate is None
            and all(isinstance(part, nn.Identity) for part in (attention.q_norm, attention.k_norm, attention.norm))
            for attention in attentions
        )
        return plain and len(attentions) == len(trunk.blocks)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D], CLS first, that enter the first block, of images float [B, 3, s, s]."""
        tokens: torch.Tensor = self.trunk.norm_pre(self.trunk._pos_embed(self.trunk.patch_embed(images)))
        return tokens

    def open(self, block: Any) -> Block:
        """The parts of one of ``blocks``."""
        attention = block.attn
        return Block(
            norm=block.norm1,
            weight=attention.qkv.weight,
            bias=attention.qkv.bias,
            heads=attention.num_heads,
            out=attention.proj,
            scale=block.ls1,
            feed_forward=lambda tokens: block.ls2(block.mlp(block.norm2(tokens))),
        )

    def head(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image embeddings [B, E] from the CLS token [B, 1, D] that leaves the last block."""
        embedding: torch.Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm(tokens)))
        return embedding


LAYOUTS: tuple[Any, ...] = (OpenCLIPLayout, TimmLayout)
"""The layouts that are known; the first that fits an image tower is used."""
