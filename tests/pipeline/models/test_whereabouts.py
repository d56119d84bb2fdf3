"""What is said of the weights of a configuration before anything is fetched."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from medfocus.pipeline.commands import weights
from medfocus.pipeline.config import Config, StorageSection, load_config
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models import model_files
from medfocus.pipeline.models.whereabouts import locate_clip, locate_sam2
from medfocus.stages.weights import file_sha256
from tests.hub_server import LICENCE, Hub
from tests.pipeline.models.hub_repositories import CLIP, SAM2, add_stand_ins

PRESET = "sam2.1-tiny+vit-b-16"


def told(*settings: str, preset: str | None = PRESET) -> tuple[str, str]:
    config = load_config(None, settings, preset)
    return locate_sam2(config.segment, config.storage), locate_clip(config.clip, config.storage)


def test_weights_of_the_hub_are_told_and_not_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    add_stand_ins(hub)
    for text, name in zip(told(), (SAM2, CLIP), strict=True):
        assert text.startswith(f"{name}: not here yet, fetched from the hub at first use; or medfocus weights fetch")
    assert not hub.bytes
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=rf"{SAM2}: not here, and HF_HUB_OFFLINE forbids .*; medfocus weights fetch"):
        told()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    config = load_config(None, (), PRESET)
    sam2 = model_files.resolve_sam2(config.segment, config.storage)
    clip = model_files.resolve_clip(config.clip, config.storage)
    expected = [f"{path.name}, sha256 {file_sha256(path)}, in the cache of the hub"
                for path in (sam2.checkpoint, clip.checkpoint)]  # fmt: skip
    assert list(told()) == expected
    with pytest.raises(UsageError, match="not the configured"):
        told(f"clip.sha256={'0' * 64}")
    before = hub.bytes.copy()
    assert "not here yet" in told("clip.model=hf-hub:owner/model", preset=None)[1]
    text = told("clip.model=hf-hub:owner/model", "clip.weights=/own.safetensors", preset=None)[1]
    assert "not here yet" in text and text.endswith("weights /own.safetensors") and hub.bytes == before


def test_weights_of_a_folder_are_told_with_their_licence(hub: Hub, tmp_path: Path, s3) -> None:
    add_stand_ins(hub)
    uri, local = f"{s3('whereabouts')}/weights", str(tmp_path / "weights")
    for folder in (uri, local):
        weights.run(Config(), "fetch", [PRESET], folder)
    cache = f"storage.cache={tmp_path / 'cache'}"
    sha256 = file_sha256(hub.root / SAM2 / "sam2.1_hiera_tiny.pt")
    end = f"sha256 {sha256}, licence {LICENCE}"
    assert told(cache, f"storage.weights={local}")[0] == f"{local}/{SAM2}/sam2.1_hiera_tiny.pt, {end}"
    settings = (cache, f"storage.weights={uri}")
    assert told(*settings)[0] == f"sam2.1_hiera_tiny.pt in {uri}, copied to each node at first use, {end}"
    assert not (tmp_path / "cache").exists()
    config = load_config(None, settings, PRESET)
    here = model_files.resolve_sam2(config.segment, config.storage).checkpoint
    assert told(*settings)[0] == f"{here}, {end}"
    with pytest.raises(UsageError, match=f"sha256 is {sha256} in {uri}, not the configured"):
        told(*settings, f"segment.sha256={'0' * 64}")
    (locate(uri, StorageSection()) / CLIP / "open_clip_model.safetensors").delete()
    with pytest.raises(UsageError, match=r"lacks its open_clip_model\.safetensors; fetch it again"):
        told(*settings)


def test_files_that_the_configuration_names_are_told(tmp_path: Path, s3) -> None:
    assert [text.split(",")[0] for text in told(preset="starter")] == [
        "model.safetensors",
        "open_clip_model.safetensors",
    ]
    uri = f"{s3('whereabouts-file')}/w.safetensors"
    with pytest.raises(UsageError, match=r"w\.safetensors: no such weights file; correct the URI"):
        told(f"segment.weights={uri}", preset=None)
    locate(uri, StorageSection()).write(b"content")
    assert told(f"segment.weights={uri}", f"storage.cache={tmp_path / 'cache'}", preset=None)[0] == (
        f"{uri}, copied to each node at first use"
    )
    assert not (tmp_path / "cache").exists()
    config = load_config(None, [f"segment.weights={uri}", f"storage.cache={tmp_path / 'cache'}"])
    digest = file_sha256(model_files.resolve_sam2(config.segment, config.storage).checkpoint)
    assert locate_sam2(config.segment, config.storage) == f"{uri}: w.safetensors, sha256 {digest}"
