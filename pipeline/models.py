"""Trained models: the learned prompts as safetensors, and a JSON that says what they fit on.

A model is registered in MLflow's registry and named by ``models:/NAME/VERSION`` (or ``models:/NAME@ALIAS``), or by
the folder that holds its two files.
"""

import json
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.exceptions import MlflowException
from safetensors.torch import save_file

from medfocus.pipeline import tracking
from medfocus.pipeline.actors import Prompts
from medfocus.pipeline.calibration import Calibration
from medfocus.pipeline.commit import settings_key
from medfocus.pipeline.config import Config
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.folds import HeldOut
from medfocus.pipeline.foundation import Foundation
from medfocus.pipeline.storage import locate
from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.weights import WeightsError, read_state_dict

PROMPTS_FILE, SETTINGS_FILE = "prompts.safetensors", "prompts.json"


@dataclass(frozen=True)
class Model:
    """Learned prompts, their settings, the foundation they fit on, and how sure they may be.

    ``held_out`` says of which rows the calibration is; None in a model of a version that did not record it.
    """

    settings: PromptSettings
    state: dict[str, torch.Tensor]
    foundation: Foundation
    calibration: Calibration
    held_out: HeldOut | None = None

    def save(self, folder: Path) -> None:
        """Write the two files of the model into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state, folder / PROMPTS_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(self._content(), indent=1, sort_keys=True) + "\n")

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, the foundation, the calibration and every learned number."""
        tensors = {name: value.numpy().tobytes().hex() for name, value in self.state.items()}
        return settings_key(self._content() | tensors)

    def prompts(self, accept_at: float | None) -> Prompts:
        """What actors need; ``accept_at`` in place of the fitted confidence where it is given."""
        calibration = self.calibration if accept_at is None else replace(self.calibration, accept_at=accept_at)
        return Prompts(self.settings, {name: value.numpy() for name, value in self.state.items()}, calibration)

    def _content(self) -> dict[str, Any]:
        parts = {"foundation": vars(self.foundation), "calibration": vars(self.calibration)}
        if self.held_out is not None:
            parts["held_out"] = vars(self.held_out)
        return {"settings": self.settings.to_json(), **parts}


def load_model(folder: Path) -> Model:
    """A model from the folder that holds its two files.

    Raises:
        UsageError: a file is missing, or is not what it should be.
    """
    try:
        content = json.loads((folder / SETTINGS_FILE).read_text())
        settings = PromptSettings.from_json(content["settings"])
        foundation = Foundation(**content["foundation"])
        calibration = Calibration(**content["calibration"])
        held_out = HeldOut(**content["held_out"]) if "held_out" in content else None
        return Model(settings, read_state_dict(folder / PROMPTS_FILE), foundation, calibration, held_out)
    except (OSError, KeyError, TypeError, json.JSONDecodeError, WeightsError) as error:
        raise UsageError(
            f"{folder.name}: not a MedFocus model ({type(error).__name__}); give one that train made"
        ) from error


def register(model: Model, name: str, run_id: str) -> str:
    """Log a model to its run and register it; returns its ``models:/`` URI."""
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        client.log_artifacts(run_id, folder, "model")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    said: dict[str, Any] = {}
    if model.held_out is not None:
        said = {"tags": {"medfocus.held_out": model.held_out.how}, "description": model.held_out.sentence}
    version = client.create_model_version(name, source, run_id, **said)
    return f"models:/{name}/{version.version}"


def resolve_model(uri: str, config: Config) -> tuple[Model, str]:
    """A model and its version by URI: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a folder.

    The version is ``NAME/VERSION``; for a folder it stands for the content.

    Raises:
        UsageError: there is no such model.
    """
    if not uri.startswith("models:/"):
        return _from_folder(uri, config)
    tracking.connect(config)
    client = mlflow.MlflowClient()
    named = re.fullmatch(r"models:/([^/@]+)(?:/([0-9]+)|@([^/@]+))", uri)
    if named is None:
        raise UsageError(f"{uri}: not models:/NAME/VERSION or models:/NAME@ALIAS; correct --model")
    name, number, alias = named.groups()
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        with tempfile.TemporaryDirectory() as folder:
            local = mlflow.artifacts.download_artifacts(f"models:/{name}/{found.version}", dst_path=folder)
            return load_model(Path(local)), f"{name}/{found.version}"
    except MlflowException as error:
        raise UsageError(f"{uri}: no such model in {tracking.shown_uri(config)}; correct --model") from error


def _from_folder(uri: str, config: Config) -> tuple[Model, str]:
    location = locate(uri, config.storage)
    if not (location / SETTINGS_FILE).exists():
        raise UsageError(f"{uri}: holds no {SETTINGS_FILE}; give a models:/ URI or a folder with a model")
    with tempfile.TemporaryDirectory() as folder:
        for name in (PROMPTS_FILE, SETTINGS_FILE):
            (Path(folder) / name).write_bytes((location / name).read())
        model = load_model(Path(folder))
    return model, f"folder/{model.digest[:12]}"
