"""Names of registered models, and the messages about models that cannot be read."""

from pathlib import Path

import mlflow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.utils.validation import _validate_model_name

from medfocus.pipeline.commands import train
from medfocus.pipeline.config import Config
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models.calibration import Calibration
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.model import Model
from medfocus.pipeline.models.registry import check_name, register, resolve_model
from medfocus.pipeline.tracking import runs
from medfocus.stages.prompt_settings import PromptSettings

MODEL = Model(
    settings=PromptSettings(("cyst", "mass"), "an image of {}", 4, "none", 0, 0, False, False),
    state={"offset": torch.zeros(2)},
    foundation=Foundation({}, {}, "sam2", "clip", False),
    calibration=Calibration(1.0, 0.5),
)


@given(st.text(min_size=1, max_size=20) | st.text("ab/:@?#% .-_é", min_size=1, max_size=8))
def test_an_accepted_name_can_be_registered_and_addressed(name: str) -> None:
    try:
        check_name(name)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    _validate_model_name(name)
    parsed = _parse_model_uri(f"models:/{name}/3")
    assert (parsed.name, parsed.version) == (name, "3")
    assert _parse_model_uri(f"models:/{name}@champion").alias == "champion"


@pytest.mark.parametrize(
    "name",
    ["", " ", "chest/2026", "a:b", "chest@ward", " chest", "chest ", "a  b", ".", "..", "x" * 251, "a\tb", "a?b"],
)
def test_an_unusable_name_is_refused_before_training_starts(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--name "):
        train.run(Config(work=str(tmp_path / "work")), str(tmp_path / "nothing"), name)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", ["chest", "chest x-ray 2026", "Thorax_v1.2", "胸部", "x" * 250])
def test_a_registered_model_is_found_by_version_and_alias(tmp_path: Path, name: str) -> None:
    config = Config(work=str(tmp_path))
    check_name(name)
    with runs.run("train", config) as active:
        uri = register(MODEL, name, active.info.run_id)
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", "1")
    assert uri == f"models:/{name}/1"
    for given_uri in (uri, f"models:/{name}@champion"):
        model, version = resolve_model(given_uri, config)
        assert version == f"{name}/1" and model.digest == MODEL.digest


def test_missing_versions_and_files_are_named(tmp_path: Path) -> None:
    config = Config(work=str(tmp_path))
    with runs.run("train", config) as active:
        uri = register(MODEL, "chest", active.info.run_id)
    for absent in ("models:/chest/2", "models:/ward/1", "models:/chest@champion"):
        with pytest.raises(UsageError, match=rf"^{absent}: no such model in sqlite:"):
            resolve_model(absent, config)
    for malformed in ("models:/chest", "models:/", "models:/a/b/1", "models:chest/1", "models:/chest/latest"):
        with pytest.raises(UsageError, match="not models:/NAME/VERSION"):
            resolve_model(malformed, config)
    (settings,) = tmp_path.rglob("prompts.json")
    settings.unlink()
    with pytest.raises(UsageError, match=r"^models:/chest/1: its file prompts\.json is missing"):
        resolve_model(uri, config)
    (tensors,) = tmp_path.rglob("prompts.safetensors")
    tensors.unlink()
    tensors.parent.rmdir()
    with pytest.raises(
        UsageError, match=r"^models:/chest/1: its files cannot be read from .*; put them back"
    ) as caught:
        resolve_model(uri, config)
    assert "\n" not in str(caught.value)
