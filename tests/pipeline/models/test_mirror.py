"""A folder of weights: made from a hub over HTTP, used without one, and never trusted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from medfocus.pipeline.commands import weights
from medfocus.pipeline.config import Config, StorageSection, load_config
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.models import mirror, model_files
from medfocus.pipeline.models.hub import Repository
from medfocus.pipeline.models.hub_models import HubFile, HubModel
from medfocus.pipeline.models.mirror_fetch import Count, mirror_model
from medfocus.stages.weights import file_sha256, load_clip, load_tokenizer, read_state_dict
from tests import hub_server, servers
from tests.hub_server import LICENCE, REVISION, Hub
from tests.pipeline.models.hub_repositories import CLIP, CLIP_REPOSITORY, SAM2, add_clip_with_bert, add_stand_ins

PRESET = "sam2.1-tiny+vit-b-16"
BERT_CLIP = "hf-hub:owner/clip-with-bert"
SMALL_VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
SMALL_BERT = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of weights to be made."""
    if request.param == "local":
        return str(tmp_path / "weights")
    bucket: str = request.getfixturevalue("s3")(f"weights-{abs(hash(request.node.name)) % 10**9}")
    return f"{bucket}/some/weights"


def fetch(to: str, *names: str) -> dict[str, Any]:
    return weights.run(Config(), "fetch", names, to)


def resolved(*settings: str, preset: str | None = None) -> tuple[model_files.ModelFiles, model_files.ModelFiles]:
    config = model_files.resolve_paths(load_config(None, settings, preset))
    return model_files.resolve_sam2(config.segment, config.storage), model_files.resolve_clip(
        config.clip, config.storage
    )


def without_internet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub_server.use(f"http://127.0.0.1:{servers.free_port()}", tmp_path / "nothing", monkeypatch)


def test_a_preset_is_fetched_once_and_then_used_without_internet(
    hub: Hub, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_stand_ins(hub)
    from_hub = resolved(preset=PRESET)
    fetched = fetch(place, PRESET)
    printed = capsys.readouterr().out
    assert f"--preset {PRESET} --set storage.weights={place}" in printed
    (tmp_path / "config.yaml").write_text(printed)
    assert fetched["copied"] == 3 and fetched["kept"] == 0
    sent = hub.bytes.copy()
    again = fetch(place, PRESET)
    assert again["copied"] == again["bytes"] == 0 and again["kept"] == 3 and again["models"] == fetched["models"]
    assert all(hub.bytes[name] == sent[name] for name in hub.bytes if name)
    entry = (locate(place, StorageSection()) / "weights.json").read_json()
    file = entry["models"][SAM2]["files"]["sam2.1_hiera_tiny.pt"]
    assert file["sha256"] == file_sha256(hub.root / SAM2 / "sam2.1_hiera_tiny.pt") and file["licence"] == LICENCE
    assert (file["revision"], file["source"]) == (REVISION, f"{hub.url}/{SAM2}")
    without_internet(monkeypatch, tmp_path)
    storage = f"storage.cache={tmp_path / 'cache'}"
    config = yaml.safe_load(printed)
    assert config["clip"]["model"] == "ViT-B-16" and len(config["segment"]["sha256"]) == 64
    settings = [value for line in fetched["settings"] for value in line]
    for used in (
        resolved(storage, f"storage.weights={place}", preset=PRESET),
        resolved(storage, *settings),
        resolved(storage, *(f"{a}.{b}={value}" for a, keys in config.items() for b, value in keys.items())),
    ):
        assert used[0].checkpoint.read_bytes() == b"s" * 5000 and used[1].checkpoint.read_bytes() == b"c" * 6000
        assert [model.identity() for model in used] == [model.identity() for model in from_hub]


def test_a_model_that_the_folder_lacks_is_not_taken_from_elsewhere(hub: Hub, tmp_path: Path) -> None:
    add_stand_ins(hub)
    fetch(str(tmp_path / "weights"), SAM2)
    with pytest.raises(UsageError, match=rf"^{CLIP}: not in storage\.weights, .*: medfocus weights fetch {CLIP} --to"):
        resolved(f"storage.weights={tmp_path / 'weights'}", preset=PRESET)
    with pytest.raises(UsageError, match=r"no weights\.json there; correct the folder, or fill it"):
        resolved(f"storage.weights={tmp_path / 'elsewhere'}", preset=PRESET)


def test_check_has_a_line_for_each_wrong_file_and_a_fetch_mends_them(
    hub: Hub, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_stand_ins(hub)
    fetch(place, SAM2, CLIP)
    root = locate(place, StorageSection())
    assert weights.run(Config(), "check", [place], None)["files"] == 3
    (root / SAM2 / "sam2.1_hiera_tiny.pt").write(b"s" * 4999)
    (root / CLIP / "open_clip_model.safetensors").delete()
    capsys.readouterr()
    with pytest.raises(MedFocusError, match="2 of 3 files are wrong") as caught:
        weights.run(Config(), "check", [place], None)
    assert caught.value.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("wrong ") for line in lines)
    assert "sam2.1_hiera_tiny.pt: sha256 is" in lines[1] and "no such file" in lines[0]
    for _ in range(2):  # also from a node's second try
        with pytest.raises((UsageError, MedFocusError), match=r"sha256 is .* fetch the model again"):
            resolved(f"storage.weights={place}", f"storage.cache={tmp_path / 'c'}", f"segment.model={SAM2}")
    assert fetch(place, SAM2, CLIP)["copied"] == 2
    assert weights.run(Config(), "check", [place], None)["files"] == 3
    resolved(f"storage.weights={place}", f"storage.cache={tmp_path / 'c'}", preset=PRESET)


def test_a_killed_fetch_continues(hub: Hub, tmp_path: Path) -> None:
    add_stand_ins(hub)
    hub.held.add("open_clip_model.safetensors")
    command = [sys.executable, "-m", "medfocus", "weights", "fetch", SAM2, CLIP, "--to", str(tmp_path / "weights")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not hub.bytes["open_clip_model.safetensors"]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    hub.held.clear()
    fetched = fetch(str(tmp_path / "weights"), SAM2, CLIP)
    assert (fetched["copied"], fetched["kept"]) == (1, 2) and hub.bytes["sam2.1_hiera_tiny.pt"] == 5000
    assert weights.run(Config(), "check", [str(tmp_path / "weights")], None)["files"] == 3


def test_two_fetches_at_once_lose_no_model(hub: Hub, place: str) -> None:
    add_stand_ins(hub)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: fetch(place, name), [SAM2, CLIP, CLIP, SAM2]))
    assert mirror.read_manifest(locate(place, StorageSection())).models.keys() == {SAM2, CLIP}
    assert weights.run(Config(), "check", [place], None)["files"] == 3


def no_such(hub: Hub) -> str:
    return "hf-hub:owner/absent"


def gated(hub: Hub) -> str:
    hub.gated.add(SAM2)
    return SAM2


def another_content(hub: Hub) -> str:
    hub.stated["sam2.1_hiera_tiny.pt"] = "0" * 64
    return SAM2


def truncated(hub: Hub) -> str:
    hub.cut = 0
    return SAM2


def no_weights(hub: Hub) -> str:
    (hub.root / SAM2 / "sam2.1_hiera_tiny.pt").unlink()
    return SAM2


def no_configuration(hub: Hub) -> str:
    return f"hf-hub:{CLIP_REPOSITORY}"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            no_such,
            r"^owner/absent: no such repository at http://.*, or a private one; correct the name, or set HF_TOKEN",
        ),
        (gated, rf"^{SAM2}: its owner gives access on request; ask for it at http.*/{SAM2}, then set HF_TOKEN"),
        (another_content, r"sam2\.1_hiera_tiny\.pt has sha256 .*, the hub states 0{64}; do not use it"),
        (truncated, rf"^{SAM2}: cannot be fetched from http.* repeat the call, which goes on from here"),
        (no_weights, rf"^{SAM2}: holds no sam2\.1_hiera_tiny\.pt; choose another model"),
        (no_configuration, r"holds no open_clip_config\.json; choose another model"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    hub: Hub, tmp_path: Path, prepare: Callable[[Hub], str], message: str
) -> None:
    add_stand_ins(hub)
    with pytest.raises(MedFocusError, match=message) as caught:
        fetch(str(tmp_path / "weights"), prepare(hub))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert not (tmp_path / "weights" / "weights.json").exists()


def test_a_token_opens_a_gated_repository_and_is_shown_nowhere(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_stand_ins(hub)
    hub.gated.add(SAM2)
    hub.unlicensed.add(SAM2)
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    fetched = fetch(str(tmp_path / "weights"), SAM2)
    assert fetched["models"][SAM2]["files"]["README.md"]["licence"] == "not stated"
    assert "licence not stated" in capsys.readouterr().out
    assert "hf_granted" not in (tmp_path / "weights" / "weights.json").read_text()


def test_a_hub_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_internet(monkeypatch, tmp_path)
    with pytest.raises(MedFocusError, match=rf"^{SAM2}: cannot be fetched from http.*check the network, HTTPS_PROXY"):
        fetch(str(tmp_path / "weights"), SAM2)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MedFocusError, match=rf"^{SAM2}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it"):
        fetch(str(tmp_path / "weights"), SAM2)
    with pytest.raises(UsageError, match=r"cannot be fetched .*; where there is no internet, set storage\.weights"):
        resolved(f"segment.model={SAM2}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fetch", ["starter"], "w"), "starter: comes along with MedFocus"),
        (("fetch", [SAM2], None), "name it with --to"),
        (("fetch", ["nothing"], "w"), "nothing: unknown; give a preset, a SAM2 hub name"),
        (("fetch", ["ViT-B-16/none"], "w"), "its tags are .*laion2b_s34b_b88k"),
        (("fetch", ["ViT-B-16/openai"], "w"), "set clip.model=ViT-B-16-quickgelu"),
        (("fetch", ["ViT-B-16-SigLIP/webli"], "w"), "fetch hf-hub:timm/ViT-B-16-SigLIP, which holds it"),
        (("check", ["a", "b"], None), "takes one folder"),
        (("check", ["a"], "w"), "takes one folder"),
    ],
)
def test_a_wrong_call_is_told(
    arguments: tuple[Any, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        weights.run(Config(), *arguments)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b", "", "a\\b", "a\nb"])
def test_no_name_leads_out_of_the_folder(hub: Hub, tmp_path: Path, name: str) -> None:
    """Neither one of weights.json, nor one that a hub gives."""
    add_stand_ins(hub)
    fetch(str(tmp_path / "weights"), SAM2)
    manifest = json.loads((tmp_path / "weights" / "weights.json").read_text())
    model = manifest["models"][SAM2]
    model["files"][name] = model["files"]["README.md"]
    (tmp_path / "weights" / "weights.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"weights\.json: models\..* is no name of a file") as caught:
        resolved(f"storage.weights={tmp_path / 'weights'}", preset=PRESET)
    assert "\n" not in str(caught.value)
    repository = Repository("owner/evil", REVISION, LICENCE, {"x": None})
    for evil in (
        HubModel("owner/evil", "sam2", "x", {name: HubFile(repository, "x")}),
        HubModel(name, "sam2", "x", {"x": HubFile(repository, "x")}),
    ):
        with pytest.raises(MedFocusError, match="is no name of a file below the folder; do not use this repository"):
            mirror_model(evil, locate(str(tmp_path / "weights"), StorageSection()), Count())
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"models": {"a": {}}}', '{"format": 2, "models": {}}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(UsageError, match=r"weights\.json: .*; fetch the weights to another folder") as caught:
        mirror.read_manifest(locate(str(tmp_path), StorageSection()))
    assert "\n" not in str(caught.value)


@torch.inference_mode()
def test_a_clip_whose_text_model_is_on_the_hub_is_complete_in_the_folder(
    hub: Hub, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As BiomedCLIP, whose text tower and tokenizer are of another repository."""
    add_clip_with_bert(hub, BERT_CLIP.removeprefix("hf-hub:"), vision=SMALL_VIT, bert=SMALL_BERT, half=False)
    section = load_config(None, [f"clip.model={BERT_CLIP}"]).clip
    from_hub = model_files.resolve_clip(section, StorageSection())
    expected = read_state_dict(from_hub.checkpoint)
    fetched = fetch(place, BERT_CLIP)
    assert "text/config.json" in fetched["models"][BERT_CLIP]["files"]
    without_internet(monkeypatch, tmp_path)
    assert weights.run(Config(), "check", [place], None)["models"] == [BERT_CLIP]
    source = model_files.resolve_clip(section, StorageSection(weights=place, cache=str(tmp_path / "cache")))
    assert source.identity() == from_hub.identity()
    clip = load_clip(source.model, source.checkpoint, seed=2)
    state = clip.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    words = load_tokenizer(source.model)(["a medical image showing lesion", "a cyst"])
    assert words.shape == (2, 64) and words[0].count_nonzero() == 7 and words[1].count_nonzero() == 4
    assert clip.encode_text(words).shape == clip.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 32)


def test_check_opens_the_tokenizer(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_clip_with_bert(hub, BERT_CLIP.removeprefix("hf-hub:"), vision=SMALL_VIT, bert=SMALL_BERT, half=True)
    for path in (hub.root / BERT_CLIP.removeprefix("hf-hub:")).glob("tokenizer*"):
        path.write_text("{}")
    shutil.rmtree(tmp_path / "weights", ignore_errors=True)
    fetch(str(tmp_path / "weights"), BERT_CLIP)
    capsys.readouterr()
    with pytest.raises(MedFocusError, match="are wrong"):
        weights.run(Config(), "check", [str(tmp_path / "weights")], None)
    assert "its tokenizer cannot be opened" in capsys.readouterr().out
