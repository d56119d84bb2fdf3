"""The image tower of a CLIP, opened between its blocks.

Only what is needed to stop at a block, go on from there and steer the attention of CLS on the way is here; weights and
modules are open_clip's own, or timm's where open_clip wraps one of its trunks (as in BiomedCLIP).

Above the cut only CLS is steered. The patches stay as the frozen tower has them, so that their keys and values are
computed once for an image, however often prompts are tuned on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from medfocus.stages import torchvision_ops  # noqa: F401  before open_clip and timm

# isort: split
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer


@dataclass(frozen=True)
class Block:
    """One transformer block with its attention laid open: ``x + scale(attend(norm(x)))``, then ``x + feed(x)``."""

    norm: nn.Module
    weight: torch.Tensor  # [3 D, D] of query, key and value
    offset: torch.Tensor | None  # [3 D]
    heads: int
    out: nn.Module
    scale: nn.Module
    feed: Callable[[torch.Tensor], torch.Tensor]


class Layout(Protocol):
    """How a library lays out its vision transformer."""

    width: int
    grid: tuple[int, int]
    blocks: list[nn.Module]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D], CLS first, that enter the first block."""

    def open(self, block: Any) -> Block: ...

    def head(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image embeddings [B, E] from the CLS token [B, 1, D] that leaves the last block."""


class OpenCLIPLayout:
    """open_clip's own vision transformer with CLS pooling."""

    def __init__(self, visual: Any):
        self.visual = visual
        self.blocks = list(visual.transformer.resblocks)
        self.width: int = visual.transformer.width
        self.grid: tuple[int, int] = visual.grid_size

    @staticmethod
    def fits(visual: Any) -> bool:
        plain = isinstance(visual, VisionTransformer) and visual.pool_type == "tok" and visual.attn_pool is None
        return plain and all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual._embeds(images)

    def open(self, block: Any) -> Block:
        attention = block.attn
        return Block(
            norm=block.ln_1,
            weight=attention.in_proj_weight,
            offset=attention.in_proj_bias,
            heads=attention.num_heads,
            out=attention.out_proj,
            scale=block.ls_1,
            feed=lambda tokens: block.ls_2(block.mlp(block.ln_2(tokens))),
        )

    def head(self, tokens: torch.Tensor) -> torch.Tensor:
        pooled, _ = self.visual._pool(tokens)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj


class TimmLayout:
    """A plain vision transformer of timm with CLS pooling, wrapped by open_clip."""

    def __init__(self, visual: Any):
        self.visual = visual
        self.trunk = visual.trunk
        self.blocks = list(self.trunk.blocks)
        self.width: int = self.trunk.embed_dim
        self.grid: tuple[int, int] = self.trunk.patch_embed.grid_size

    @staticmethod
    def fits(visual: Any) -> bool:
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
        return self.trunk.norm_pre(self.trunk._pos_embed(self.trunk.patch_embed(images)))

    def open(self, block: Any) -> Block:
        attention = block.attn
        return Block(
            norm=block.norm1,
            weight=attention.qkv.weight,
            offset=attention.qkv.bias,
            heads=attention.num_heads,
            out=attention.proj,
            scale=block.ls1,
            feed=lambda tokens: block.ls2(block.mlp(block.norm2(tokens))),
        )

    def head(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.visual.head(self.trunk.forward_head(self.trunk.norm(tokens)))


class CachedTokens(NamedTuple):
    """B images at the cut, ready for CLS to pass the blocks above it.

    ``cls`` is float [B, D]; ``memory`` float [B, blocks, 2, heads, L-1, D / heads], keys and values of the patches in
    each block above the cut.
    """

    cls: torch.Tensor
    memory: torch.Tensor


class ImageTower(nn.Module):
    """A vision transformer with CLS pooling, run in two parts.

    ``upper(remember(lower(images)))`` equals the model's own ``encode_image`` (not normalised).

    Args:
        clip: a CLIP whose image tower is open_clip's ``VisionTransformer``, or timm's in open_clip's ``TimmModel``.
        cut: number of blocks in the lower part, from 1 to one less than the tower has.

    Raises:
        ValueError: the tower is of another kind, or has too few blocks for the cut.
    """

    def __init__(self, clip: Any, cut: int):
        super().__init__()
        visual = clip.visual
        layouts: list[Any] = [OpenCLIPLayout, TimmLayout]
        fitting = [layout for layout in layouts if layout.fits(visual)]
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
        return self.layout.width

    @property
    def heads(self) -> int:
        return self.blocks[0].heads

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
        tokens = self.layout.embed(images)
        for block in self.layout.blocks[: self.cut]:
            tokens = block(tokens)
        return tokens

    @torch.no_grad()
    def cache_tokens(self, tokens: torch.Tensor) -> CachedTokens:
        """What CLS meets above the cut, of tokens float [B, L, D] that leave ``lower``; nothing is learned of it."""
        memory = []
        cls = tokens[:, 0]
        for index, block in enumerate(self.blocks):
            hidden = block.norm(tokens)
            query, key, value = _project(block, hidden)
            memory.append(torch.stack([key[:, :, 1:], value[:, :, 1:]], 1))
            if index < len(self.blocks) - 1:
                mixed = F.scaled_dot_product_attention(query, key, value)
                tokens = tokens + block.scale(block.out(_join(mixed)))
                tokens = tokens + block.feed(tokens)
        return CachedTokens(cls, torch.stack(memory, 1))

    def upper(
        self,
        remembered: CachedTokens,
        bias: list[torch.Tensor] | None = None,
        prompts: list[torch.Tensor] | None = None,
        gates: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Image embeddings [B, E]: CLS goes through the blocks above the cut, among the patches of the frozen tower.

        Args:
            remembered: of B images.
            bias: for each block, added to the logits of the attention from CLS to each patch, [B, L-1].
            prompts: for each block, visual prompt tokens [V, D] that CLS also attends to.
            gates: for each block, how much the prompts' part counts in each head, [heads]; 0 is not at all.
        """
        cls = remembered.cls[:, None]
        for index, block in enumerate(self.blocks):
            keys, values = remembered.memory[:, index].unbind(1)
            query, key, value = _project(block, block.norm(cls))
            # By parts: to join CLS's own key and value to the memory would copy all of it.
            scaled = query * query.shape[-1] ** -0.5
            among_patches = scaled @ keys.transpose(-1, -2)
            if bias is not None:
                among_patches = among_patches + bias[index][:, None, None]
            itself = (scaled * key).sum(-1, keepdim=True)
            share = torch.cat([itself, among_patches], -1).softmax(-1)
            mixed = share[..., :1] * value + share[..., 1:] @ values
            if prompts is not None and gates is not None:
                _, key, value = _project(block, block.norm(prompts[index])[None])
                mixed = mixed + torch.tanh(gates[index])[:, None, None] * F.scaled_dot_product_attention(
                    query, key.expand(len(query), -1, -1, -1), value.expand(len(query), -1, -1, -1)
                )
            cls = cls + block.scale(block.out(_join(mixed)))
            cls = cls + block.feed(cls)
        return self.layout.head(cls)


def _project(block: Block, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value of a block's attention, [B, heads, L, D / heads] each, of normed tokens [B, L, D]."""
    projected = F.linear(hidden, block.weight, block.offset).chunk(3, -1)
    return tuple(part.unflatten(-1, (block.heads, -1)).transpose(1, 2) for part in projected)


def _join(mixed: torch.Tensor) -> torch.Tensor:
    """Heads [B, heads, L, D / heads] side by side again, [B, L, D]."""
    return mixed.transpose(1, 2).flatten(2)
