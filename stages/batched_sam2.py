"""SAM2's encoder and mask decoder over batches of images and prompts.

SAM2 is arXiv 2408.00714; its prompt encoder and mask decoder are those of SAM (arXiv 2304.02643, appendix A). In the
shapes, B is the number of images, P of clicks, T of tokens of a click, D the width of the embedding, and e the side of
the embedding; one image has e e places.
"""

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
    """The output of SAM2's encoder for B images.

    Attributes:
        embedding: float [B, D, e, e], the image embedding.
        fine: float [B, D/8, 4e, 4e] and [B, D/4, 2e, 2e], the two finer maps that the decoder adds.
    """

    embedding: torch.Tensor
    fine: tuple[torch.Tensor, ...]

    def take(self, rows: torch.Tensor) -> "ImageFeatures":
        """The features of the images at the given indices, int64 [N]."""
        return ImageFeatures(self.embedding[rows], tuple(level[rows] for level in self.fine))

    def repeat(self, times: int) -> "ImageFeatures":
        """The features with each image ``times`` times in a row, once for each of its prompts."""
        return ImageFeatures(
            self.embedding.repeat_interleave(times, 0), tuple(level.repeat_interleave(times, 0) for level in self.fine)
        )


@dataclass(frozen=True)
class ClickTokens:
    """The output of the decoder's transformer for P clicks on each of B images, from which masks are drawn.

    Attributes:
        iou: float [B, P, 3], predicted IoU of the three masks of a click.
        mask_tokens: float [B, P, 3, D], tokens of these masks.
        image_tokens: float [B, P, e e, D], tokens of the image's places after they have attended to the click.
    """

    iou: torch.Tensor
    mask_tokens: torch.Tensor
    image_tokens: torch.Tensor


def encode_images(model: "SAM2Base", pixels: torch.Tensor) -> ImageFeatures:
    """Run SAM2's encoder on a batch, as ``SAM2ImagePredictor.set_image_batch`` does.

    On a GPU that supports bfloat16 it computes in bfloat16, as SAM2's examples do. The features are always float32.

    Args:
        model: SAM2.
        pixels: uint8 [B, S, S, 1 or 3]; resized on the device as SAM2 does (bilinear, antialiased).

    Returns:
        The features of the B images, on the model's device.
    """
    on_gpu = model.device.type == "cuda"
    if on_gpu and pixels.device.type == "cpu":
        pixels = pixels.pin_memory()  # the copy overlaps with the computation of the previous batch
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
    # The package flattens the maps to [h w, B, D] for its video model; the decoder takes [B, D, h, w].
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
    """Run SAM2's prompt encoder and mask decoder on one prompt for each image of the features.

    Args:
        model: SAM2.
        features: the features of N images; ``ImageFeatures.repeat`` gives an image several prompts.
        points: float [N, K, 2], x and y in pixels of the model's input.
        labels: int32 [N, K]: 1 foreground, 0 background, 2 and 3 the corners of a box, -1 no point.
        masks: float [N, 1, h, w], logits of an earlier round.
        multimask: whether to predict three masks for a prompt instead of one.

    Returns:
        Logits float [N, 3 or 1, h, w] at a quarter of the input's side, and predicted IoU float [N, 3 or 1].
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
    """Run the decoder's transformer (``TwoWayTransformer``) for the same foreground clicks on every image.

    The package computes everything for each pair of an image and a click. Here two parts of the first layer are
    computed once: the self-attention of the tokens, which does not depend on the image, and the projections of the
    image, which do not depend on the click. Elsewhere the projections act on the few tokens of a click instead of on
    the many places of the image.

    Args:
        model: SAM2.
        features: the features of B images.
        points: float [P, 2], x and y in pixels of the model's input; each is one prompt.

    Returns:
        The tokens of every pair of an image and a click.
    """
    decoder = model.sam_mask_decoder
    tokens, dense, first_iou, first_prompt = _initial_tokens(model, points)
    images, clicks = len(features.embedding), len(points)
    position = model.sam_prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)
    image = (features.embedding + dense[:1]).flatten(2).transpose(1, 2)

    transformer = decoder.transformer
    layer, *later = transformer.layers
    # The self-attention of the first layer has neither positions nor a residual.
    queries = layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens)).repeat(images, 1, 1)
    token_position = tokens.repeat(images, 1, 1)
    positioned = image + position
    # The clicks of one image form one row of queries: each query attends to the image independently of the others.
    row = (queries + token_position).reshape(images, -1, queries.shape[-1])
    attention = layer.cross_attn_token_to_image(q=row, k=positioned, v=image).reshape(queries.shape)
    queries, image = _finish_layer(layer, queries, attention, token_position, positioned, image)
    for layer in later:
        positioned = image + position
        keys = queries + token_position
        queries = layer.norm1(queries + layer.self_attn(q=keys, k=keys, v=queries))
        attention = _attend_to_image(layer.cross_attn_token_to_image, queries + token_position, positioned, image)
        queries, image = _finish_layer(layer, queries, attention, token_position, positioned, image)
    final = transformer.final_attn_token_to_image
    attention = _attend_to_image(final, queries + token_position, image + position, image)
    queries = transformer.norm_final_attn(queries + attention).unflatten(0, (images, clicks))
    # Of the mask tokens the first is left out: it is the one for several prompts.
    iou = decoder.iou_prediction_head(queries[:, :, first_iou])[..., 1:]
    return ClickTokens(iou, queries[:, :, first_iou + 2 : first_prompt], image.unflatten(0, (images, clicks)))


def _initial_tokens(model: "SAM2Base", points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """The tokens that enter the decoder's transformer for P clicks.

    Returns:
        Tokens float [P, T, D], in the order object score (where the model has one), IoU, masks, prompt; the dense
        prompt embedding float [P, D, e, e]; the index of the IoU token, and that of the first prompt token.
    """
    encoder, decoder = model.sam_prompt_encoder, model.sam_mask_decoder
    labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
    sparse, dense = encoder(points=(points[:, None], labels), boxes=None, masks=None)
    object_score = [decoder.obj_score_token.weight] if decoder.pred_obj_scores else []
    output = torch.cat([*object_score, decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(points), -1, -1), sparse], 1)
    return tokens, dense, len(object_score), len(output)


def _finish_layer(
    layer: Any,
    queries: torch.Tensor,
    attention: torch.Tensor,
    token_position: torch.Tensor,
    positioned: torch.Tensor,
    image: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a ``TwoWayAttentionBlock`` from the point where its tokens have attended to the image.

    Args:
        layer: the block.
        queries: float [N, T, D], the tokens.
        attention: float [N, T, D], the output of their attention to the image.
        token_position: float [N, T, D], position codes of the tokens.
        positioned: float [N or B, e e, D], the image tokens plus their position codes.
        image: float [N or B, e e, D], the image tokens; with B rows, one row is shared by N / B rows of tokens.

    Returns:
        The tokens float [N, T, D] and the image tokens float [N, e e, D] that leave the block.
    """
    queries = layer.norm2(queries + attention)
    queries = layer.norm3(queries + layer.mlp(queries))
    updated = _attend_to_tokens(layer.cross_attn_image_to_token, queries + token_position, queries, positioned, image)
    return queries, layer.norm4(updated)


def _attend_to_image(
    attention: Any, queries: torch.Tensor, positioned: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """SAM2's ``Attention`` of tokens to the places of their image, with the projections applied to the tokens.

    q . (W k) equals (W' q) . k, and the mean of W v equals W times the mean of v. A bias that all keys share does not
    change the softmax.

    Args:
        attention: the package's module.
        queries: float [N, T, D], the tokens plus their position codes.
        positioned: float [N, e e, D], the image tokens plus their position codes.
        image: float [N, e e, D], the image tokens.

    Returns:
        Float [N, T, D].
    """
    heads = attention.num_heads
    q = attention.q_proj(queries).unflatten(2, (heads, -1)).transpose(1, 2)
    key = (q * q.shape[-1] ** -0.5) @ attention.k_proj.weight.unflatten(0, (heads, -1))
    share = (key.flatten(1, 2) @ positioned.transpose(1, 2)).softmax(2)
    mean = (share @ image).unflatten(1, (heads, -1))
    value = mean @ attention.v_proj.weight.unflatten(0, (heads, -1)).transpose(1, 2)
    output: torch.Tensor = attention.out_proj(value.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return output


def _attend_to_tokens(
    attention: Any, keys: torch.Tensor, values: torch.Tensor, positioned: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """The image tokens plus their ``Attention`` to the tokens, with the projections applied to the tokens.

    Args:
        attention: the package's module.
        keys: float [N, T, D], the tokens plus their position codes; N is B or B P.
        values: float [N, T, D], the tokens.
        positioned: float [B, e e, D], the image tokens plus their position codes.
        image: float [B, e e, D], the image tokens; each row is shared by N / B rows of tokens.

    Returns:
        Float [N, e e, D].
    """
    heads, images = attention.num_heads, len(image)
    k, v = (
        project(tokens).unflatten(2, (heads, -1)).transpose(1, 2)
        for project, tokens in ((attention.k_proj, keys), (attention.v_proj, values))
    )
    k = k * k.shape[-1] ** -0.5
    query = (k @ attention.q_proj.weight.unflatten(0, (heads, -1))).reshape(images, -1, image.shape[-1])
    bias = (k @ attention.q_proj.bias.unflatten(0, (heads, -1))[..., None]).reshape(images, -1, 1)
    logits = torch.baddbmm(bias, query, positioned.transpose(1, 2))
    share = logits.view(*k.shape[:3], -1).softmax(2).flatten(1, 2)
    # The shares of one head sum to 1, so each head can add its part of the bias.
    value = v @ attention.out_proj.weight.t().unflatten(0, (heads, -1)) + attention.out_proj.bias / heads
    residual = image if images == len(keys) else image.repeat_interleave(len(keys) // images, 0)
    return torch.baddbmm(residual, share.transpose(1, 2), value.flatten(1, 2))


def draw_masks(
    model: "SAM2Base", features: ImageFeatures, tokens: ClickTokens, images: torch.Tensor, clicks: torch.Tensor
) -> torch.Tensor:
    """Draw the three masks of chosen pairs of an image and a click, as the package's decoder draws them.

    Args:
        model: SAM2.
        features: the features of B images.
        tokens: the tokens of P clicks on these images (``click_tokens``).
        images: int64 [N], index of the image of each pair.
        clicks: int64 [N], index of the click of each pair.

    Returns:
        Logits float [N, 3, h, w] at a quarter of the input's side.
    """
    decoder = model.sam_mask_decoder
    mask_tokens, image = tokens.mask_tokens[images, clicks], tokens.image_tokens[images, clicks]
    image = image.transpose(1, 2).unflatten(2, features.embedding.shape[-2:])
    finest, finer = (level[images] for level in features.fine)
    up, norm, activation, up_again, activation_again = decoder.output_upscaling
    upscaled = activation(norm(up(image) + finer))
    upscaled = activation_again(up_again(upscaled) + finest)
    networks = list(decoder.output_hypernetworks_mlps)[1:]
    weights = torch.stack([network(mask_tokens[:, index]) for index, network in enumerate(networks)], 1)
    logits: torch.Tensor = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
    return logits
