"""Runs in MLflow: one experiment, one run a command, owned by the driver."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from medfocus.pipeline.config import Config
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.storage import without_credentials

# MLflow refuses longer parameter values.
_LONGEST_PARAMETER = 6000
# MLflow refuses more metrics in one request.
_MOST_METRICS = 1000


class TrackingError(MedFocusError):
    """A tracking store that cannot be used; the message names it and the mend."""


def tracking_uri(config: Config) -> str:
    """``MLFLOW_TRACKING_URI``, else SQLite in the work folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(config.work).absolute() / 'mlflow.db'}"


def shown_uri(config: Config) -> str:
    """The store's URI without the credentials it may hold."""
    return without_credentials(tracking_uri(config))


def connect(config: Config) -> str:
    """Point MLflow at the store and make the experiment if needed; returns the experiment's id.

    Raises:
        TrackingError: the store does not answer.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # A store that is down is told after seconds, not after MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri(config)
    artifacts = None
    if uri.startswith("sqlite:///"):
        work = Path(config.work).absolute()
        work.mkdir(parents=True, exist_ok=True)
        artifacts = (work / "mlartifacts").as_uri()
    given = "MLFLOW_TRACKING_URI" in os.environ
    mlflow.set_tracking_uri(uri)
    if not given:  # MLflow writes it there, where the next command of this process would take it for the user's wish
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        experiment = mlflow.get_experiment_by_name(config.tracking.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(mlflow.create_experiment(config.tracking.experiment, artifact_location=artifacts))
    except MlflowException as error:
        reason = without_credentials(str(error).splitlines()[0])[:160]
        raise TrackingError(
            f"MLflow at {shown_uri(config)}: {reason}; start the server or correct MLFLOW_TRACKING_URI"
        ) from error


@contextmanager
def run(command: str, config: Config, *, resume: str | None = None) -> Iterator[mlflow.ActiveRun]:
    """One MLflow run for one command; ``resume`` continues the run of an interrupted call.

    The configuration is logged as parameters. A run that ends by an exception is marked FAILED, one that is
    interrupted KILLED.
    """
    experiment = connect(config)
    if resume is not None and not _known(resume):
        resume = None
    with mlflow.start_run(run_id=resume, experiment_id=None if resume else experiment, run_name=command) as active:
        mlflow.set_tag("medfocus.command", command)
        if resume is None:
            mlflow.log_params(_flat(config.model_dump()))
        try:
            yield active
        except KeyboardInterrupt:
            mlflow.end_run(RunStatus.to_string(RunStatus.KILLED))
            raise


def log_parameters(values: Mapping[str, str]) -> None:
    """Log parameters a run has beside its configuration; a resumed run keeps those it has."""
    known = mlflow.get_run(mlflow.active_run().info.run_id).data.params
    mlflow.log_params({key: value for key, value in values.items() if key not in known})


def log_tags(values: Mapping[str, str]) -> None:
    """Tag the active run, each tag under ``medfocus.``."""
    mlflow.set_tags({f"medfocus.{key}": value for key, value in values.items()})


def log_metrics(values: Mapping[str, Any]) -> None:
    """Log the numbers among the values as metrics."""
    numbers = [(key, float(value)) for key, value in values.items() if isinstance(value, int | float)]
    for start in range(0, len(numbers), _MOST_METRICS):
        mlflow.log_metrics(dict(numbers[start : start + _MOST_METRICS]))


def log_progress(figures: Mapping[str, float]) -> None:
    """Log how far the run is; its rows done are the step."""
    mlflow.log_metrics(dict(figures), step=int(figures["rows_done"]))


def log_history(history: Sequence[Mapping[str, float]]) -> None:
    """Log what an epoch measured, each epoch a step."""
    for step, values in enumerate(history):
        mlflow.log_metrics(dict(values), step=step)


def log_dataset(name: str, digest: str, context: str) -> None:
    """Log which data the run read: a name and the digest of its content.

    The digest is the first 36 characters MLflow keeps; paths stay out, they may tell who the data is about.
    """
    source = CodeDatasetSource(tags={"medfocus.digest": digest})
    mlflow.log_input(MetaDataset(source, name=name, digest=digest[:36]), context=context)


def _known(run_id: str) -> bool:
    try:
        mlflow.get_run(run_id)
    except MlflowException:
        return False
    return True


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = without_credentials(str(value))[:_LONGEST_PARAMETER]
    return flat
