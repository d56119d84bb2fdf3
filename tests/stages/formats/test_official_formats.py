"""Each official format of weights, at full size: a loaded model gives the outputs of the saved one.

The files are written here with random weights, in the layout that the projects publish.
"""

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from medfocus.pipeline.config import ClipSection, SegmentSection, StorageSection
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models import model_files
from medfocus.stages.batched_sam2 import decode_prompts, encode_images
from medfocus.stages.tower import ImageTower
from medfocus.stages.weights import WeightsError, load_clip, load_sam2

STARTER_CLIP = Path(__file__).parents[3] / "starter" / "clip"
# What OpenAI's state dicts hold beside the weights of ViT-B/16.
OPENAI_NUMBERS = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}


def half(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors in half precision; the model is rounded to them."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return {name: value.contiguous() for name, value in state.items()}


@torch.inference_mode()
def answers(model) -> tuple[torch.Tensor, torch.Tensor]:
    side = model.visual.image_size[0]
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    words = torch.randint(1, 1000, (1, model.context_length), generator=torch.Generator().manual_seed(1))
    return model.encode_image(image), model.encode_text(words)


def same(found, expected) -> bool:
    return all(torch.equal(one, other) for one, other in zip(answers(found), answers(expected), strict=True))


@torch.inference_mode()
def test_sam2_is_loaded_from_its_published_format(tmp_path: Path) -> None:
    """A PyTorch file with the tensors under ``model``."""
    model = "facebook/sam2.1-hiera-tiny"
    original = load_sam2(model, None, seed=1)
    torch.save({"model": original.state_dict()}, tmp_path / "sam2.pt")
    section = SegmentSection(model=model, weights=str(tmp_path / "sam2.pt"))
    source = model_files.resolve_sam2(section, StorageSection())
    found = load_sam2(source.model, source.checkpoint, seed=2)
    pixels = torch.randint(0, 256, (1, 1024, 1024, 1), dtype=torch.uint8)
    points, labels = torch.tensor([[[300.0, 500.0]]]), torch.ones(1, 1, dtype=torch.int)
    (masks, iou), (other_masks, other_iou) = (
        decode_prompts(network, encode_images(network, pixels), points, labels) for network in (original, found)
    )
    assert torch.equal(masks, other_masks) and torch.equal(iou, other_iou)


@pytest.fixture(scope="module")
def vit():
    return load_clip("ViT-B-16", None, seed=1)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_32.pt"])
def test_open_clip_is_loaded_from_its_published_and_its_training_formats(tmp_path: Path, vit, name: str) -> None:
    state = half(vit)
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    elif name.endswith(".bin"):
        torch.save(state, tmp_path / name)
    else:  # what open_clip's own training writes
        torch.save({"epoch": 32, "state_dict": {f"module.{key}": state[key] for key in state}}, tmp_path / name)
    section = ClipSection(model="ViT-B-16", weights=str(tmp_path / name))
    source = model_files.resolve_clip(section, StorageSection())
    assert same(load_clip(source.model, source.checkpoint, source.preprocess, seed=2), vit)


def test_a_state_dict_of_openai_is_loaded_with_quickgelu_only(tmp_path: Path, vit) -> None:
    """Three numbers beside the tensors, and QuickGELU, without which the same tensors are another model."""
    original = load_clip("ViT-B-16-quickgelu", None, seed=1)
    state = half(original)
    torch.save(state | {name: torch.tensor(value) for name, value in OPENAI_NUMBERS.items()}, tmp_path / "ViT-B-16.pt")
    assert same(load_clip("ViT-B-16-quickgelu", tmp_path / "ViT-B-16.pt", seed=2), original)
    with pytest.raises(
        WeightsError, match=r"ViT-B-16\.pt: OpenAI's weights are not of ViT-B-16, .* -quickgelu"
    ) as told:
        load_clip("ViT-B-16", tmp_path / "ViT-B-16.pt")
    assert "\n" not in str(told.value)


def test_biomedclip_is_loaded_with_its_timm_trunk_and_bert(biomedclip: Path) -> None:
    original = load_clip(biomedclip, None, seed=1)
    state = half(original)
    state["text.transformer.embeddings.position_ids"] = torch.arange(512)[None]  # as published, of an older library
    torch.save(state, biomedclip / "open_clip_pytorch_model.bin")
    source = model_files.resolve_clip(ClipSection(model=str(biomedclip)), StorageSection())
    assert source.checkpoint == biomedclip / "open_clip_pytorch_model.bin"
    assert same(load_clip(source.model, source.checkpoint, source.preprocess, seed=2), original)


def test_a_tag_decides_the_normalisation_and_needs_its_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tags as open_clip names them; only the download is replaced by a file that is here."""
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda configuration: str(tmp_path / "w.safetensors"))
    tagged = ClipSection(model="ViT-L-14", weights="laion2b_s32b_b82k")  # trained with a mean and deviation of 0.5
    source = model_files.resolve_clip(tagged, StorageSection())
    assert source.checkpoint == tmp_path / "w.safetensors"
    usual = model_files.resolve_clip(ClipSection(model="ViT-L-14", weights="laion400m_e32"), StorageSection())
    assert source.identity() != usual.identity()
    tower = ImageTower(load_clip(STARTER_CLIP, None, source.preprocess), 1)
    pixels = torch.tensor([[[[0]], [[255]]]], dtype=torch.uint8).expand(1, 2, 2, 1)
    tower.visual.image_size = (2, 2)
    assert torch.equal(tower.normalise(pixels).unique(), torch.tensor([-1.0, 1.0]))
    with pytest.raises(UsageError, match=r"openai: .* set clip\.model=ViT-B-16-quickgelu"):
        model_files.resolve_clip(ClipSection(model="ViT-B-16", weights="openai"), StorageSection())
    model_files.resolve_clip(ClipSection(model="ViT-B-16-quickgelu", weights="openai"), StorageSection())
