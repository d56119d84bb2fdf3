"""Models in MLflow's registry: registers a model, and finds it by its URI.

The URI of a model is ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``, or the folder that holds its two files.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models.model import PROMPTS_FILE, SETTINGS_FILE, Model, load_model
from medfocus.pipeline.tracking import runs
from medfocus.pipeline.tracking.store import attempt, shown_uri

# Names that can be registered and addressed. MLflow refuses / and : in names; @, ?, # and % have a meaning in URIs; its
# databases keep 250 characters.
_NAME, _LONGEST_NAME = re.compile(r"[\w.-]+(?: [\w.-]+)*"), 250


def check_name(name: str) -> None:
    """Check that a model can be registered under a name and found again as ``models:/NAME/VERSION``.

    Args:
        name: name of the registered model.

    Raises:
        UsageError: the name cannot be used.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME or name.strip(".") == "":
        raise UsageError(
            f"--name {name!r}: a model's name has letters, digits, dots, dashes, underscores and single blanks between"
            f" them, at most {_LONGEST_NAME}; choose another"
        )


def register(model: Model, name: str, run_id: str) -> str:
    """Log a model to its run and register it as a new version.

    Args:
        model: the trained model.
        name: name of the registered model, which is created if needed.
        run_id: MLflow run that trained the model.

    Returns:
        The URI ``models:/NAME/VERSION``.

    Raises:
        TrackingError: the store or its artifact storage cannot be written.
    """
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        attempt(lambda: client.log_artifacts(run_id, folder, "model"))
    attempt(lambda: _create_registered_model(client, name))
    source = f"{attempt(lambda: client.get_run(run_id)).info.artifact_uri}/model"
    details: dict[str, Any] = {}
    if model.held_out is not None:
        details = {"tags": {"medfocus.held_out": model.held_out.how}, "description": model.held_out.sentence}
    version = attempt(lambda: client.create_model_version(name, source, run_id, **details))
    return f"models:/{name}/{version.version}"


def _create_registered_model(client: mlflow.MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def resolve_model(uri: str, config: Config) -> tuple[Model, str]:
    """Read a model by its URI.

    Args:
        uri: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a local path or ``s3://`` URI of a folder.
        config: ``work`` and ``tracking`` name the store, ``storage`` reads folders.

    Returns:
        The model and its version: ``NAME/VERSION``, or ``folder/`` and the first digits of the model's digest.

    Raises:
        UsageError: there is no such model, or its files cannot be read.
        TrackingError: the store does not answer.
    """
    if not uri.startswith("models:"):
        return _from_folder(uri, config)
    match = re.fullmatch(r"models:/(?P<name>[^/]+)(?:/(?P<number>[0-9]+)|@(?P<alias>[^/@]+))", uri)
    if match is None:
        raise UsageError(f"{uri}: not models:/NAME/VERSION or models:/NAME@ALIAS; correct --model")
    runs.connect(config)
    version = attempt(lambda: _find_version(**match.groupdict()))
    if version is None:
        raise UsageError(f"{uri}: no such model in {shown_uri(config)}; correct --model")
    with tempfile.TemporaryDirectory() as folder:
        return load_model(Path(_download(uri, version, folder)), uri), f"{version.name}/{version.version}"


def _find_version(name: str, number: str | None, alias: str | None) -> ModelVersion | None:
    """The version that a number or an alias names; None where there is none."""
    client = mlflow.MlflowClient()
    try:
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _download(uri: str, version: ModelVersion, folder: str) -> str:
    """Download the files of a version into a folder; returns the path that holds them."""
    client = mlflow.MlflowClient()
    source = attempt(lambda: client.get_model_version_download_uri(version.name, version.version))
    try:
        return mlflow.artifacts.download_artifacts(source, dst_path=folder)
    except (MlflowException, OSError, ImportError) as error:
        raise UsageError(
            f"{uri}: its files cannot be read from {without_credentials(source)} ({reason(error)}); put them back, or"
            " train it again"
        ) from error


def _from_folder(uri: str, config: Config) -> tuple[Model, str]:
    """The model in a folder, and its digest as version."""
    location = locate(uri, config.storage)
    if not (location / SETTINGS_FILE).exists():
        raise UsageError(f"{uri}: holds no {SETTINGS_FILE}; give a models:/ URI or a folder with a model")
    with tempfile.TemporaryDirectory() as folder:
        for name in (PROMPTS_FILE, SETTINGS_FILE):
            (Path(folder) / name).write_bytes((location / name).read())
        model = load_model(Path(folder), uri)
    return model, f"folder/{model.digest[:12]}"
