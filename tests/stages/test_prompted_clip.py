from pathlib import Path
from typing import get_args

import numpy as np
import open_clip
import pytest
import torch

from medfocus.stages.classify import Classify
from medfocus.stages.embed import Embed
from medfocus.stages.masks import bounding_box, cover, encode_mask
from medfocus.stages.prompt_settings import FOCUS_MODES, Focus, PromptSettings
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.tower import ImageTower
from medfocus.stages.tuning import prompt_loss
from medfocus.stages.weights import load_clip, load_tokenizer

CLASSES = ("solid mass", "ring_lesion", "cyst")


def settings(**changes) -> PromptSettings:
    values = {"template": "a medical image showing {}", "cut": 4, "focus": "both", "visual_prompts": 4}
    return PromptSettings(
        **({"classes": CLASSES, "text_context": 4, "class_context": False, "class_offset": True} | values | changes)
    )


def test_each_focus_mode_has_its_learned_parts(starter_clip, starter_tokenizer) -> None:
    assert tuple(FOCUS_MODES) == get_args(Focus)
    for name, mode in FOCUS_MODES.items():
        learned = PromptedCLIP(starter_clip, starter_tokenizer, settings(focus=name)).learned
        assert ("fusion" in learned, "focus_strength" in learned) == (mode.region, mode.attention)


@pytest.fixture(scope="module")
def vit():
    """The full-size tower with random weights."""
    return load_clip("ViT-B-16", None)


@pytest.mark.parametrize("class_context", [False, True])
@pytest.mark.parametrize("focus", ["none", "masked_image", "attention", "both"])
def test_an_untrained_model_equals_open_clip(starter_clip, starter_tokenizer, focus: str, class_context: bool) -> None:
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings(focus=focus, class_context=class_context))
    images = torch.randn(3, 3, 112, 112)
    with torch.no_grad():
        tokens = model.tower.lower(images)
        image, text = model(
            model.cache_tokens(tokens), torch.rand(3, 196), model.cache_tokens(torch.randn_like(tokens))
        )
        sentences = starter_tokenizer([f"a medical image showing {name.replace('_', ' ')}" for name in CLASSES])
        assert torch.allclose(image, starter_clip.encode_image(images, normalize=True), atol=1e-5)
        assert torch.allclose(text, starter_clip.encode_text(sentences, normalize=True), atol=1e-5)


def test_an_untrained_full_size_tower_equals_open_clip(vit) -> None:
    model = PromptedCLIP(vit, open_clip.get_tokenizer("ViT-B-16"), settings(cut=9))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = model.tower.lower(images)
        image = model.image_embedding(model.cache_tokens(tokens), torch.rand(2, 196), None)
        assert torch.allclose(image, vit.encode_image(images, normalize=True), atol=1e-5)
    learned = sum(value.numel() for value in model.learned_state().values())
    assert learned < 0.01 * sum(value.numel() for value in vit.visual.parameters())


def test_an_untrained_biomedclip_equals_open_clip(biomedclip: Path) -> None:
    clip, tokenizer = load_clip(biomedclip, None), load_tokenizer(biomedclip)
    model = PromptedCLIP(clip, tokenizer, settings(cut=9))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = model.tower.lower(images)
        whole, region = model.cache_tokens(tokens), model.cache_tokens(torch.randn_like(tokens))
        image, text = model(whole, torch.rand(2, 196), region)
        assert torch.allclose(image, clip.encode_image(images, normalize=True), atol=1e-5)
        sentences = tokenizer([f"a medical image showing {name.replace('_', ' ')}" for name in CLASSES])
        assert len(set(map(tuple, sentences.tolist()))) == len(CLASSES)
        assert torch.allclose(text, clip.encode_text(sentences, normalize=True), atol=1e-5)
        for value in model.learned.values():
            value += 0.1 * torch.randn_like(value)
        moved_image, moved_text = model(whole, torch.rand(2, 196), region)
        assert not torch.allclose(moved_image, image, atol=1e-3) and not torch.allclose(moved_text, text, atol=1e-3)


def test_a_context_for_each_class_moves_only_its_class(starter_clip, starter_tokenizer) -> None:
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings(class_context=True))
    with torch.no_grad():
        before = model.text_embedding()
        model.learned["text_context"][1] += torch.randn_like(model.learned["text_context"][1])
        moved = (model.text_embedding() - before).abs().amax(1)
    assert moved[1] > 1e-3 and moved[0] < 1e-6 and moved[2] < 1e-6


def test_an_offset_moves_only_its_class_and_its_prior_falls_with_the_rows(starter_clip, starter_tokenizer) -> None:
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings())
    without = PromptedCLIP(starter_clip, starter_tokenizer, settings(class_offset=False))
    with torch.no_grad():
        before = model.text_embedding()
        assert torch.equal(before, without.text_embedding()) and model.prior(10) == 0
        model.learned["class_offset"][1, :2] = torch.tensor([0.3, -0.4])
        moved = model.text_embedding()
    by_hand = before[1].double().clone()
    by_hand[:2] += torch.tensor([0.3, -0.4])
    assert torch.allclose(moved[1].double(), by_hand / by_hand.norm(), atol=1e-6)
    assert torch.allclose(moved[[0, 2]], before[[0, 2]], atol=1e-6)
    assert model.prior(10).item() == pytest.approx(4 / 10 * 0.25) and model.prior(1000).item() == pytest.approx(0.001)
    assert without.prior(10).item() == 0


def test_only_the_learned_part_has_gradients_and_all_of_it_does(starter_clip, starter_tokenizer) -> None:
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings())
    with torch.no_grad():  # away from zero, where a gate hides what is behind it
        for value in model.learned.values():
            value += 0.1
    tokens, patches = (4, model.tower.grid[0] * model.tower.grid[1] + 1, model.tower.width), torch.rand(4, 196)
    image, text = model(model.cache_tokens(torch.randn(tokens)), patches, model.cache_tokens(torch.randn(tokens)))
    prompt_loss(model.logits(image, text), torch.tensor([0, 1, 2, 0]), 0.5).backward()
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert with_gradient == {f"learned.{name}" for name in model.learned_state()}


def test_focus_bias_equals_attention_computed_by_hand(starter_clip) -> None:
    """The last block's CLS attention with a bias, in float64 from the weights alone."""
    tower = ImageTower(starter_clip, len(starter_clip.visual.transformer.resblocks) - 1)
    block = starter_clip.visual.transformer.resblocks[-1].double()
    width, length = tower.width, tower.grid[0] * tower.grid[1] + 1
    tokens = torch.randn(2, length, width, dtype=torch.float64)
    bias = torch.randn(2, length - 1, dtype=torch.float64)
    try:
        found = tower_upper_cls(tower, tokens, bias)
        hidden = block.ln_1(tokens)
        heads = block.attn.num_heads
        weight, offset = block.attn.in_proj_weight, block.attn.in_proj_bias
        query, key, value = (
            (hidden @ weight[i * width : (i + 1) * width].T + offset[i * width : (i + 1) * width])
            .reshape(2, length, heads, -1)
            .permute(0, 2, 1, 3)
            for i in range(3)
        )
        logits = torch.einsum("bhd,bhkd->bhk", query[:, :, 0], key) / (width // heads) ** 0.5
        logits[:, :, 1:] += bias[:, None]
        mixed = torch.einsum("bhk,bhkd->bhd", logits.softmax(-1), value).reshape(2, width)
        cls = tokens[:, 0] + mixed @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        expected = cls + block.mlp(block.ln_2(cls))
        assert torch.allclose(found, expected, atol=1e-9)
    finally:
        block.float()


def tower_upper_cls(tower: ImageTower, tokens: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """CLS as it leaves the last block, before pooling."""
    outputs = {}
    pool, projection = tower.visual._pool, tower.visual.proj

    def keep(x):
        outputs["cls"] = x[:, 0]
        return x[:, 0], x[:, 1:]

    try:
        tower.visual._pool, tower.visual.proj = keep, None
        with torch.no_grad():
            tower.upper(tower.cache_tokens(tokens), bias=[bias])
    finally:
        tower.visual._pool, tower.visual.proj = pool, projection
    return outputs["cls"]


def test_prompts_equal_attention_computed_by_hand(starter_clip) -> None:
    """What gated prompts add to CLS in the last block, in float64 from the weights alone."""
    tower = ImageTower(starter_clip, len(starter_clip.visual.transformer.resblocks) - 1)
    block = starter_clip.visual.transformer.resblocks[-1].double()
    tokens = torch.randn(2, 197, tower.width, dtype=torch.float64)
    prompts, gate = torch.randn(3, tower.width, dtype=torch.float64), torch.randn(tower.heads, dtype=torch.float64)
    mixed: list[torch.Tensor] = []
    handle = block.attn.out_proj.register_forward_hook(lambda module, inputs, output: mixed.append(inputs[0][:, 0]))
    pool = tower.visual._pool
    try:
        tower.visual._pool = lambda x: (x[:, 0].float(), x[:, 1:])
        with torch.no_grad():
            tower.upper(tower.cache_tokens(tokens))
            tower.upper(tower.cache_tokens(tokens), prompts=[prompts], gates=[gate])
        weight, offset, width = block.attn.in_proj_weight, block.attn.in_proj_bias, tower.width
        query = block.ln_1(tokens[:, 0]) @ weight[:width].T + offset[:width]
        key, value = ((block.ln_1(prompts) @ weight[width:].T) + offset[width:]).split(width, 1)
        each = width // tower.heads
        for head in range(tower.heads):
            part = slice(head * each, (head + 1) * each)
            share = (query[:, part] @ key[:, part].T / each**0.5).softmax(-1)
            added = torch.tanh(gate[head]) * share @ value[:, part]
            assert torch.allclose(mixed[1][:, part] - mixed[0][:, part], added, atol=1e-9)
    finally:
        handle.remove()
        tower.visual._pool = pool
        block.float()


def test_an_optimizer_gets_each_learned_tensor_once(starter_clip, starter_tokenizer) -> None:
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings())
    groups = model.parameter_groups(1e-3)
    given = [id(value) for group in groups for value in group["params"]]
    assert sorted(given) == sorted(id(value) for value in model.learned.values())
    assert {group["peak"] for group in groups} == {1e-3, 3e-2}


def test_the_learned_state_is_a_copy(starter_clip, starter_tokenizer) -> None:
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings())
    kept = model.learned_state()
    with torch.no_grad():
        model.learned["fusion"] += 1
    assert kept["fusion"].item() == 0


def test_the_learned_part_round_trips_and_refuses_another_shape(starter_clip, starter_tokenizer) -> None:
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings())
    state = {name: torch.randn_like(value) for name, value in model.learned_state().items()}
    model.load_learned(state)
    assert all(torch.equal(model.learned_state()[name], state[name]) for name in state)
    other = PromptedCLIP(starter_clip, starter_tokenizer, settings(visual_prompts=2))
    with pytest.raises(ValueError, match="load them with their own JSON"):
        other.load_learned(state)


def test_a_cut_beyond_the_tower_is_refused(starter_clip) -> None:
    with pytest.raises(ValueError, match=r"clip\.cut is 99"):
        ImageTower(starter_clip, 99)


def test_the_loss_equals_its_definition() -> None:
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 2, 1, 0])
    classification = -logits.log_softmax(1)[range(5), target].mean()
    pairs = logits[:, target].numpy()
    terms = []
    for scores in (pairs, pairs.T):
        for i in range(5):
            shares = np.exp(scores[i]) / np.exp(scores[i]).sum()
            same = [j for j in range(5) if target[j] == target[i]]
            terms.append(-np.mean([np.log(shares[j]) for j in same]))
    expected = 0.3 * np.mean(terms) + 0.7 * classification.item()
    assert prompt_loss(logits, target, 0.3).item() == pytest.approx(expected, rel=1e-9)


def rows(count: int = 3) -> dict:
    random = np.random.default_rng(0)
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:70] = True
    empty = np.full(count, "", object)
    return {
        "image_id": np.array([str(i) for i in range(count)], object),
        "pixels": random.integers(0, 256, (count, 256, 256, 1), dtype=np.uint8),
        "mask_counts": np.full(count, encode_mask(mask), object),
        "region_box": np.tile(bounding_box(mask), (count, 1)),
        "height": np.full(count, 60, np.int32),
        "width": np.full(count, 90, np.int32),
        "stage": empty.copy(),
        "error": empty.copy(),
        "message": empty.copy(),
    }, mask


def test_embed_adds_tokens_and_the_focus_of_each_patch(starter_clip) -> None:
    batch, mask = rows()
    batch["error"][1] = "Undecodable"
    tower = ImageTower(starter_clip, 4)
    out = Embed(tower, region=True, batch_size=2)(batch)
    grid = tower.grid
    assert out["tokens"].dtype == np.float16 and out["tokens"].shape == (3, 1, grid[0] * grid[1] + 1, tower.width)
    assert np.allclose(out["focus"][0, 0], cover(mask, *grid).reshape(-1), atol=2e-3)
    assert not out["tokens"][1].any() and "pixels" not in out
    assert not np.array_equal(out["tokens"][0], out["region_tokens"][0])


def test_the_tokens_of_a_region_are_those_of_its_crop(starter_clip) -> None:
    """The box of 20 to 70 of 90 columns and 10 to 30 of 60 rows, in a square of 256 with a margin of 15 %."""
    batch, _ = rows(1)
    out = Embed(ImageTower(starter_clip, 4), region=True, batch_size=2)(batch)
    side = round(1.3 * 50 / 90 * 256)
    left, top = round(45 / 90 * 256 - side / 2), 0  # moved down to lie inside
    assert round(20 / 60 * 256 - side / 2) < 0
    tower = ImageTower(starter_clip, 4)
    part = torch.from_numpy(batch["pixels"][:, top : top + side, left : left + side])
    with torch.no_grad():
        expected = tower.lower(tower.normalise(part)).half().numpy()
    assert np.array_equal(out["region_tokens"][:, 0], expected)


def test_the_first_view_is_the_image_itself_and_the_others_differ(starter_clip) -> None:
    batch, _ = rows(2)
    tower = ImageTower(starter_clip, 4)
    one, many = Embed(tower, region=True, batch_size=2)(batch), Embed(tower, region=True, batch_size=2, views=3)(batch)
    for name in ("tokens", "region_tokens", "focus"):
        assert many[name].shape[1] == 3 and np.array_equal(many[name][:, :1], one[name])
        assert not np.array_equal(many[name][:, 1], many[name][:, 2])
    again = Embed(tower, region=True, batch_size=1, views=3)({k: v[1:] for k, v in batch.items()})
    assert np.allclose(again["tokens"][0], many["tokens"][1], atol=5e-2)  # a view depends on the name, not on the batch
    assert np.array_equal(again["focus"][0], many["focus"][1])


def test_a_region_of_the_whole_image_has_the_tokens_of_the_image(starter_clip) -> None:
    batch, _ = rows(1)
    everything = np.ones((60, 90), bool)
    batch["mask_counts"][0], batch["region_box"][0] = encode_mask(everything), bounding_box(everything)
    out = Embed(ImageTower(starter_clip, 4), region=True, batch_size=2)(batch)
    assert np.array_equal(out["tokens"], out["region_tokens"])
    assert (out["focus"] == 1).all()


def test_an_untrained_model_classifies_as_open_clip_does_zero_shot(starter_clip, starter_tokenizer) -> None:
    """Untrained, the whole path gives open_clip's own zero-shot probabilities, but for float16 tokens."""
    batch, _ = rows()
    model = PromptedCLIP(starter_clip, starter_tokenizer, settings())
    embedded = Embed(model.tower, region=True, batch_size=8)(batch)
    out = Classify(model, temperature=1.0, accept_at=0.4, batch_size=2)(embedded)
    with torch.no_grad():
        images = model.tower.normalise(torch.from_numpy(batch["pixels"]))
        image = starter_clip.encode_image(images, normalize=True)
        text = starter_clip.encode_text(model.text, normalize=True)
        expected = (starter_clip.logit_scale.exp() * image @ text.T).softmax(-1).numpy()
    assert np.allclose(out["probabilities"], expected, atol=5e-3)
    assert out["label"].tolist() == [CLASSES[i] for i in out["probabilities"].argmax(1)]
    assert ((out["decision"] == "accept") == (out["confidence"] >= 0.4)).all()
    cooler = Classify(model, temperature=2.0, accept_at=0.4, batch_size=2)(embedded)
    halved = np.sqrt(out["probabilities"])
    assert np.allclose(cooler["probabilities"], halved / halved.sum(1, keepdims=True), atol=1e-5)
    assert "tokens" not in out


def test_pixels_are_normalised_as_open_clip_normalises_them(starter_clip) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    transform = open_clip.image_transform(112, is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3)
    expected = transform(Image.fromarray(pixels[0]))
    found = ImageTower(starter_clip, 4).normalise(torch.from_numpy(pixels))[0]
    # Pillow and torch differ in the last bit of 8.
    assert (found - expected).abs().max() <= 1.01 / 255 / 0.25


def test_the_tokenizer_is_that_of_the_model(starter_tokenizer) -> None:
    assert starter_tokenizer(["a"]).shape == (1, 32)
    assert torch.equal(load_tokenizer("ViT-B-16")(["a mass"]), open_clip.get_tokenizer("ViT-B-16")(["a mass"]))
