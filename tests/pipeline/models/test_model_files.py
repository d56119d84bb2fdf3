"""Weights: names that mean the same on every node, one download for each node, and the identity of a model."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from medfocus.pipeline.commands import embed, pack
from medfocus.pipeline.config import Config, StorageSection, load_config
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.models import model_files
from tests.faults.injection import failing_s3

SAM2, CLIP = (Path(str(files("medfocus.starter") / name)) for name in ("sam2", "clip"))
RESOLVE = """
import sys
from medfocus.pipeline.models import model_files
from medfocus.pipeline.config import SegmentSection, StorageSection
section = SegmentSection(weights=sys.argv[1])
print(model_files.resolve_sam2(section, StorageSection(cache=sys.argv[2])).checkpoint)
"""
IDENTITY = """
import sys
from pathlib import Path
from medfocus.pipeline.models.model_files import ModelFiles
print(ModelFiles(sys.argv[1], Path(sys.argv[1]) / "model.safetensors").identity())
"""


def test_a_file_of_this_machine_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "starter").mkdir()
    sets = ["clip.weights=w.safetensors", "segment.model=facebook/sam2.1-hiera-tiny", "segment.weights=s3://b/w"]
    config = model_files.resolve_paths(load_config(None, sets))
    assert config.clip.weights == str(tmp_path / "w.safetensors") and config.clip.model == "starter"
    assert (config.segment.model, config.segment.weights) == ("facebook/sam2.1-hiera-tiny", "s3://b/w")


def test_the_endpoint_and_the_region_are_those_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert model_files.resolve_paths(Config()).storage == StorageSection()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    storage = model_files.resolve_paths(Config()).storage
    assert (storage.s3_endpoint, storage.s3_region) == ("http://127.0.0.1:9000", "eu-north-1")


def test_relative_weights_reach_workers_that_run_elsewhere(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers of this Ray were started in another folder than the one that the names are relative to."""
    command = [sys.executable, "-m", "medfocus.starter.phantoms", str(tmp_path), "--count", "4"]
    subprocess.run(command, check=True)
    shutil.copytree(SAM2, tmp_path / "mine")
    shutil.copy(CLIP / "open_clip_model.safetensors", tmp_path / "clip.safetensors")
    monkeypatch.chdir(tmp_path)
    sets = ["segment.model=mine", "clip.weights=clip.safetensors", "segment.points_per_side=2"]
    config = load_config(None, [f"work={tmp_path / 'work'}", *sets])
    pack.run(config, "images", "shards", "labels.csv")
    assert embed.run(config, "shards", "features")["embedded"] == 4


def test_a_node_fetches_weights_once_however_many_workers_ask(
    s3: Callable[[str], str], s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3('once')}/w.safetensors"
    locate(uri, StorageSection()).write((SAM2 / "model.safetensors").read_bytes())
    with failing_s3(s3_url, share=0, seed=0) as (url, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        command = [sys.executable, "-c", RESOLVE, uri, str(tmp_path / "cache")]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        paths = {worker.communicate(timeout=120)[0].strip() for worker in workers}
    assert len(paths) == 1 and proxy.bytes_sent < 1.5 * SAM2.joinpath("model.safetensors").stat().st_size
    digest = hashlib.sha256((SAM2 / "model.safetensors").read_bytes()).hexdigest()
    assert hashlib.sha256(Path(paths.pop()).read_bytes()).hexdigest() == digest


def test_a_worker_refuses_another_model_than_the_runs(tmp_path: Path) -> None:
    section = Config().segment.model_copy(update={"model": str(tmp_path / "mine")})
    shutil.copytree(SAM2, tmp_path / "mine")
    sam2 = model_files.resolve_sam2(section, StorageSection())
    identity = sam2.identity()
    model_files.check_identity(sam2, identity, "segment")
    architecture = json.loads((tmp_path / "mine" / "sam2.json").read_text())
    (tmp_path / "mine" / "sam2.json").write_text(json.dumps(architecture | {"note": "another"}))
    changed = model_files.resolve_sam2(section, StorageSection())
    model_files.check_identity(changed, None, "segment")
    with pytest.raises(MedFocusError, match=r"segment\.weights: model\.safetensors on node .* is not what the run"):
        model_files.check_identity(changed, identity, "segment")


def test_the_identity_follows_architecture_weights_and_preprocessing() -> None:
    """The formula is fixed: features and models record identities."""
    sam2 = model_files.ModelFiles(SAM2, SAM2 / "model.safetensors")
    weights = hashlib.sha256((SAM2 / "model.safetensors").read_bytes()).hexdigest()
    content = json.dumps([[(SAM2 / "sam2.json").read_text(encoding="utf-8")], weights, None])
    assert sam2.identity() == hashlib.sha256(content.encode()).hexdigest()
    named = model_files.ModelFiles("ViT-B-16", SAM2 / "model.safetensors", {"mean": [0.5]})
    content = json.dumps([["ViT-B-16"], weights, {"mean": [0.5]}])
    assert named.identity() == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_identity_is_the_same_in_every_locale(tmp_path: Path, locale: str) -> None:
    shutil.copytree(SAM2, tmp_path / "mine")
    (tmp_path / "mine" / "note.json").write_text('"Größe 大"', encoding="utf-8")
    expected = model_files.ModelFiles(tmp_path / "mine", tmp_path / "mine" / "model.safetensors").identity()
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", IDENTITY, str(tmp_path / "mine")]
    assert subprocess.check_output(command, env=environment, text=True).strip() == expected


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError(), "RuntimeError"),
        (OSError("\n\nno route to the hub\nmore about it"), "OSError: no route to the hub"),
    ],
)
def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, cause: str) -> None:
    def fail(**_: str) -> str:
        raise error

    monkeypatch.setattr(model_files, "hf_hub_download", fail)
    section = Config().segment.model_copy(update={"model": "facebook/sam2.1-hiera-tiny"})
    with pytest.raises(UsageError) as caught:
        model_files.resolve_sam2(section, StorageSection())
    assert str(caught.value) == (
        f"facebook/sam2.1-hiera-tiny: cannot be fetched ({cause}); where there is no internet, set storage.weights to a"
        " folder that medfocus weights fetch made elsewhere"
    )
