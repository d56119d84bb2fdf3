"""The presets at full size: random weights in the official formats pass the hub, a folder, and score without a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medfocus.pipeline.commands import weights
from medfocus.pipeline.config import Config
from medfocus.pipeline.presets import PRESETS
from medfocus.stages.weights import load_clip, load_sam2, sam2_hub_file
from tests import servers
from tests.hub_server import Hub
from tests.pipeline.models.hub_repositories import CLIP, CLIP_REPOSITORY, add_clip_with_bert

BIOMEDCLIP_VISION = {
    "timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
    "image_size": 224,
}  # fmt: skip
pytestmark = [pytest.mark.faults, pytest.mark.long]


def publish(hub: Hub, name: str) -> None:
    """Publish a model of a preset with random weights."""
    if (file := sam2_hub_file(name)) is not None:
        torch.save({"model": load_sam2(name, None, seed=1).state_dict()}, hub.add(name) / file)
    elif name == CLIP:
        state = load_clip("ViT-B-16", None, seed=1).state_dict()
        save_file({key: value.half() for key, value in state.items()},
                  hub.add(CLIP_REPOSITORY) / "open_clip_model.safetensors")  # fmt: skip
    else:
        repository = name.removeprefix("hf-hub:")
        add_clip_with_bert(hub, repository, vision=BIOMEDCLIP_VISION, bert={"vocab_size": 30522}, half=True)


@pytest.mark.parametrize("preset", [name for name in PRESETS if PRESETS[name].weights])
def test_a_preset_scores_without_a_hub(hub: Hub, tmp_path: Path, s3_url: str, preset: str, s3) -> None:
    for name in PRESETS[preset].weights:
        publish(hub, name)
    folder = f"{s3('presets-' + preset.split('+')[1])}/weights"
    weights.run(Config(), "fetch", [preset], folder)
    nowhere = f"http://127.0.0.1:{servers.free_port()}"
    environment = {**os.environ, "HF_ENDPOINT": nowhere, "HF_HOME": str(tmp_path / "nothing")}
    subprocess.run([sys.executable, "-m", "medfocus.starter.phantoms", str(tmp_path), "--count", "12"], check=True)
    common = ["--preset", preset, "--json"]
    places = (f"storage.weights={folder}", f"storage.cache={tmp_path / 'cache'}", f"work={tmp_path / 'work'}")
    for setting in (*places, "segment.points_per_side=1", "segment.image_size=256", "train.epochs=1", "train.folds=2"):
        common += ["--set", setting]

    def call(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "-m", "medfocus", *arguments, *common]
        ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr
        result: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
        return result

    call("pack", "images", "shards", "--labels", "labels.csv")
    assert call("embed", "shards", "features")["embedded"] == 12
    uri = call("train", "features")["model_uri"]
    assert call("score", "shards", "out", "--model", str(uri))["scored"] == 12
