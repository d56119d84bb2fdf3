"""Loading weights: the formats that are read, and those that are refused with one line."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medfocus.pipeline.config import ClipSection, SegmentSection, StorageSection
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models import model_files
from medfocus.stages.weights import VIDEO_PARTS, WeightsError, load_clip, load_sam2, read_state_dict, sam2_image_size

STARTER = Path(__file__).parents[2] / "starter"
SAM2, CLIP = STARTER / "sam2", STARTER / "clip"


class MaliciousPickle:
    """An object whose unpickling runs a function."""

    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("wrap", ["bare", "model", "state_dict", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_is_read_in_each_wrapping(tmp_path: Path, wrap: str, suffix: str) -> None:
    state = {"a.weight": torch.randn(2, 3), "b": torch.tensor([1, 2])}
    content = {f"module.{name}": value for name, value in state.items()} if wrap == "module." else state
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save({wrap: content} if wrap in ("model", "state_dict") else content, path)
    found = read_state_dict(path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": torch.ones(1)}, "more": MaliciousPickle()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds pickled objects beside tensors") as caught:
        read_state_dict(tmp_path / "w.pt")
    assert "\n" not in str(caught.value) and not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    state = {"a": torch.randn(100, 100)}
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="not a whole checkpoint") as caught:
        read_state_dict(cut)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("cut")


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="not a state dict"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="no such checkpoint"):
        read_state_dict(tmp_path / "absent.pt")


def test_sam2_without_its_video_parts_gives_the_same_masks(tmp_path: Path) -> None:
    """The official layout (a ``model`` entry) with and without what only video needs."""
    model = load_sam2(SAM2, None, seed=3)
    state = model.state_dict()
    torch.save({"model": state}, tmp_path / "all.pt")
    save_file(
        {k: v.contiguous() for k, v in state.items() if not k.startswith(VIDEO_PARTS)}, tmp_path / "s.safetensors"
    )
    image = torch.randn(1, 3, 320, 320)
    expected = model.forward_image(image)["backbone_fpn"]
    for name in ("all.pt", "s.safetensors"):
        found = load_sam2(SAM2, tmp_path / name, seed=9).forward_image(image)["backbone_fpn"]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    clip = load_clip(CLIP, None)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit .* tensors missing"):
        load_sam2(SAM2, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit ViT-B-32") as caught:
        load_clip("ViT-B-32", tmp_path / "clip.safetensors")
    assert "\n" not in str(caught.value)


def test_clip_weights_round_trip_through_the_layout_of_open_clip(tmp_path: Path) -> None:
    clip = load_clip(CLIP, None, seed=5)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    found = load_clip(CLIP, tmp_path / "open_clip_model.safetensors", seed=1)
    image = torch.randn(2, 3, 112, 112)
    assert torch.equal(found.encode_image(image), clip.encode_image(image))


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (load_clip(CLIP, None, seed=seed).visual.proj for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("load", "name"), [(load_sam2, "SAM2"), (load_clip, "CLIP")])
def test_an_unknown_model_is_refused(load, name: str) -> None:
    with pytest.raises(WeightsError, match=f"no-such-model: unknown {name} model"):
        load("no-such-model", None)


def test_the_image_size_of_sam2_is_read_from_its_architecture() -> None:
    assert sam2_image_size(SAM2) == 320 and sam2_image_size("facebook/sam2.1-hiera-tiny") == 1024


def test_weights_from_a_local_path_and_from_s3_are_checked_by_their_hash(tmp_path: Path, s3) -> None:
    from medfocus.pipeline.data.storage import locate

    clip = load_clip(CLIP, None, seed=5)
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    storage = StorageSection(cache=str(tmp_path / "cache"))
    uri = s3("weights") + "/models/w.safetensors"
    locate(uri, storage).write(content)
    local = model_files.resolve_clip(ClipSection(weights=str(tmp_path / "w.safetensors"), sha256=digest), storage)
    fetched = model_files.resolve_clip(ClipSection(weights=uri, sha256=digest), storage)
    assert fetched.checkpoint.read_bytes() == content and fetched.checkpoint.is_relative_to(tmp_path / "cache")
    assert fetched.identity() == local.identity()
    again = model_files.resolve_clip(ClipSection(weights=uri), storage)
    assert again.checkpoint == fetched.checkpoint
    with pytest.raises(UsageError, match=f"sha256 is {digest}, not the configured {'0' * 64}"):
        model_files.resolve_clip(ClipSection(weights=uri, sha256="0" * 64), storage)
    for absent in (str(tmp_path / "absent.pt"), uri + "x"):
        with pytest.raises(UsageError, match="no such weights file"):
            model_files.resolve_clip(ClipSection(weights=absent), storage)


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights are configured"):
        model_files.resolve_clip(ClipSection(model="ViT-B-16"), StorageSection())
    (tmp_path / "sam2.json").write_text((SAM2 / "sam2.json").read_text())
    with pytest.raises(UsageError, match="no weights are configured"):
        model_files.resolve_sam2(SegmentSection(model=str(tmp_path)), StorageSection())
