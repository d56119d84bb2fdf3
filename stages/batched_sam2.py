"""SAM2's encoder and mask decoder over batches of images and prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from medfocus.stages import torchvision_ops  # noqa: F401  before sam2

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# SAM2's own image normalisation (sam2.utils.transforms.SAM2Transforms).
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageFeatures:
    """What the encoder makes of B images: the embedding and the two finer maps the decoder adds."""

    embedding: torch.Tensor  # float [B, D, e, e]
    fine: tuple[torch.Tensor, ...]  # float [B, D/8, 4e, 4e] and [B, D/4, 2e, 2e]

    def take(self, rows: torch.Tensor) -> "ImageFeatures":
        """The images of the given indices."""
        return ImageFeatures(self.embedding[rows], tuple(level[rows] for level in self.fine))

    def repeat(self, times: int) -> "ImageFeatures":
        """Each image ``times`` times in a row, so that it meets as many prompts."""
        return ImageFeatures(
            self.embedding.repeat_interleave(times, 0), tuple(level.repeat_interleave(times, 0) for level in self.fine)
        )


@dataclass(frozen=True)
class ClickTokens:
    """What the decoder's transformer makes of P clicks on each of B images, before a mask is drawn."""

    iou: torch.Tensor  # predicted IoU of the three masks of a click, float [B, P, 3]
    tokens: torch.Tensor  # their mask tokens, float [B, P, 3, D]
    image: torch.Tensor  # the image as the click left it, float [B, P, e e, D]


def encode_images(model: "SAM2Base", pixels: torch.Tensor) -> ImageFeatures:
    """SAM2's encoder on a batch, as ``SAM2ImagePredictor.set_image_batch`` runs it.

    On a GPU that has bfloat16 it computes in that, as SAM2's examples do; its features are float32 everywhere.

    Args:
        model: SAM2.
        pixels: uint8 [B, S, S, 1 or 3]; resized on the device as SAM2 does (bilinear, antialiased).
    """
    on_gpu = model.device.type == "cuda"
    if on_gpu and pixels.device.type == "cpu":
        pixels = pixels.pin_memory()  # so that the copy goes on beside what the device still computes
    images = pixels.to(model.device, non_blocking=on_gpu)
    images = images.permute(0, 3, 1, 2).float().div(255).expand(-1, 3, -1, -1)
    if images.shape[-1] != model.image_size:
        images = F.interpolate(images, (model.image_size, model.image_size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values, device=model.device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=on_gpu and torch.cuda.is_bf16_supported()):
        output = model.forward_image((images - mean) / std)
    _, maps, _, sizes = model._prepare_backbone_features(output)
    if model.directly_add_no_mem_embed:
        maps[-1] = maps[-1] + model.no_mem_embed
    # Flattened to [hw, B, D] for the video model; back to [B, D, h, w] for the decoder.
    levels = [level.float().permute(1, 2, 0).unflatten(2, size) for level, size in zip(maps, sizes, strict=True)]
    return ImageFeatures(levels[-1], tuple(levels[:-1]))


def decode_prompts(
    model: "SAM2Base",
    features: ImageFeatures,
    points: torch.Tensor,
    labels: torch.Tensor,
    *,
    masks: torch.Tensor | None = None,
    multimask: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SAM2's prompt encoder and mask decoder, a prompt for each image of the features.

    Args:
        model: SAM2.
        features: of N images (one image with several prompts is repeated).
        points: float [N, K, 2], x and y in pixels of the model's input.
        labels: int32 [N, K]: 1 foreground, 0 background, 2 and 3 the corners of a box.
        masks: logits of an earlier round, [N, 1, h, w].
        multimask: three masks a prompt, else one.

    Returns:
        Logits [N, 3 or 1, h, w] at a quarter of the input's side, and predicted IoU [N, 3 or 1].
    """
    encoder = model.sam_prompt_encoder
    sparse, dense = encoder(points=(points, labels), boxes=None, masks=masks)
    logits, iou, _, _ = model.sam_mask_decoder(
        image_embeddings=features.embedding,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        repeat_image=False,
        high_res_features=list(features.fine),
    )
    return logits, iou


def click_tokens(model: "SAM2Base", features: ImageFeatures, points: torch.Tensor) -> ClickTokens:
    """The decoder's transformer (``TwoWayTransformer``) for the same single foreground clicks on every image.

    What the package computes for each pair of image and click is computed once where it is the same: the tokens'
    self-attention of the first layer, which has not seen the image, and what that layer makes of the image, which has
    not seen the click. Elsewhere the few tokens are projected, not the many places of the image.

    Args:
        model: SAM2.
        features: of B images.
        points: float [P, 2], x and y in pixels of the model's input.
    """
    encoder, decoder = model.sam_prompt_encoder, model.sam_mask_decoder
    images, clicks = len(features.embedding), len(points)
    labels = torch.ones(clicks, 1, dtype=torch.int, device=points.device)
    sparse, dense = encoder(points=(points[:, None], labels), boxes=None, masks=None)
    first = [decoder.obj_score_token.weight] if decoder.pred_obj_scores else []
    own = torch.cat([*first, decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(clicks, -1, -1), sparse], 1)
    place = encoder.get_dense_pe().flatten(2).transpose(1, 2)
    image = (features.embedding + dense[:1]).flatten(2).transpose(1, 2)

    transformer = decoder.transformer
    layer, *later = transformer.layers
    # The first layer's self-attention has neither positions nor a residual.
    queries = layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens)).repeat(images, 1, 1)
    place_of_tokens = tokens.repeat(images, 1, 1)
    placed = image + place
    # The clicks of an image are one row of queries: each looks at the image by itself.
    folded = (queries + place_of_tokens).reshape(images, -1, queries.shape[-1])
    seen = layer.cross_attn_token_to_image(q=folded, k=placed, v=image).reshape(queries.shape)
    queries, image = _rest_of_layer(layer, queries, seen, place_of_tokens, placed, image)
    for layer in later:
        placed = image + place
        q = queries + place_of_tokens
        queries = layer.norm1(queries + layer.self_attn(q=q, k=q, v=queries))
        seen = _look(layer.cross_attn_token_to_image, queries + place_of_tokens, placed, image)
        queries, image = _rest_of_layer(layer, queries, seen, place_of_tokens, placed, image)
    seen = _look(transformer.final_attn_token_to_image, queries + place_of_tokens, image + place, image)
    queries = transformer.norm_final_attn(queries + seen).unflatten(0, (images, clicks))
    iou, masks = queries[:, :, len(first)], queries[:, :, len(first) + 1 : len(own)]
    # The first mask is the one for several prompts.
    return ClickTokens(decoder.iou_prediction_head(iou)[..., 1:], masks[:, :, 1:], image.unflatten(0, (images, clicks)))


def _rest_of_layer(
    layer: Any,
    queries: torch.Tensor,
    seen: torch.Tensor,
    place_of_tokens: torch.Tensor,
    placed: torch.Tensor,
    image: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``TwoWayAttentionBlock`` after its tokens [N, T, D] have seen the image, [N, hw, D] or one for many of them."""
    queries = layer.norm2(queries + seen)
    queries = layer.norm3(queries + layer.mlp(queries))
    shown = _show(layer.cross_attn_image_to_token, queries + place_of_tokens, queries, placed, image)
    return queries, layer.norm4(shown)


def _look(attention: Any, queries: torch.Tensor, placed: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """``Attention`` of tokens [N, T, D] to their images [N, hw, D], with the projections moved to the tokens.

    q . (W k) = (W' q) . k, and the mean of W v is W times the mean of v; a bias of all keys changes no softmax.
    """
    heads = attention.num_heads
    q = attention.q_proj(queries).unflatten(2, (heads, -1)).transpose(1, 2)
    key = (q * q.shape[-1] ** -0.5) @ attention.k_proj.weight.unflatten(0, (heads, -1))
    share = (key.flatten(1, 2) @ placed.transpose(1, 2)).softmax(2)
    mean = (share @ image).unflatten(1, (heads, -1))
    value = mean @ attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    return attention.out_proj(value.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def _show(
    attention: Any, keys: torch.Tensor, values: torch.Tensor, placed: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """The image plus its ``Attention`` to tokens [N, T, D], with the projections moved to the tokens.

    Args:
        attention: of the package.
        keys, values: of the tokens, N = B P.
        placed, image: [B, hw, D], each for P tokens' rows.

    Returns:
        Float [N, hw, D].
    """
    heads, images = attention.num_heads, len(image)
    k, v = (
        project(tokens).unflatten(2, (heads, -1)).transpose(1, 2)
        for project, tokens in ((attention.k_proj, keys), (attention.v_proj, values))
    )
    k = k * k.shape[-1] ** -0.5
    query = (k @ attention.q_proj.weight.unflatten(0, (heads, -1))).reshape(images, -1, image.shape[-1])
    bias = (k @ attention.q_proj.bias.unflatten(0, (heads, -1))[..., None]).reshape(images, -1, 1)
    logits = torch.baddbmm(bias, query, placed.transpose(1, 2))
    share = logits.view(*k.shape[:3], -1).softmax(2).flatten(1, 2)
    # A head's shares sum to one, so that the bias may be dealt out to the heads.
    value = v @ attention.out_proj.weight.t().unflatten(0, (heads, -1)) + attention.out_proj.bias / heads
    before = image if images == len(keys) else image.repeat_interleave(len(keys) // images, 0)
    return torch.baddbmm(before, share.transpose(1, 2), value.flatten(1, 2))


def draw_masks(
    model: "SAM2Base", features: ImageFeatures, attended: ClickTokens, images: torch.Tensor, clicks: torch.Tensor
) -> torch.Tensor:
    """Logits of the three masks of some pairs of an image and a click, as the package's decoder draws them.

    Args:
        model: SAM2.
        features: of B images, and ``attended`` for them.
        images, clicks: int64 [N], indices.

    Returns:
        Float [N, 3, h, w] at a quarter of the input's side.
    """
    decoder = model.sam_mask_decoder
    tokens, source = attended.tokens[images, clicks], attended.image[images, clicks]
    source = source.transpose(1, 2).unflatten(2, features.embedding.shape[-2:])
    finest, finer = (level[images] for level in features.fine)
    up, norm, activation, up_again, activation_again = decoder.output_upscaling
    drawn = activation(norm(up(source) + finer))
    drawn = activation_again(up_again(drawn) + finest)
    networks = list(decoder.output_hypernetworks_mlps)[1:]
    weights = torch.stack([network(tokens[:, index]) for index, network in enumerate(networks)], 1)
    return (weights @ drawn.flatten(2)).unflatten(2, drawn.shape[-2:])
