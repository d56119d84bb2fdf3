"""Runs in MLflow: one experiment, one run a command, owned by the driver."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LifecycleStage, Run, RunStatus
from mlflow.exceptions import MlflowException

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import log
from medfocus.pipeline.tracking.store import TrackingError, attempt, connect

# MLflow refuses longer parameter values.
_LONGEST_PARAMETER = 6000
# MLflow refuses more metrics in one request.
_MOST_METRICS = 1000


@contextmanager
def run(command: str, config: Config, *, resume: str | None = None) -> Iterator[mlflow.ActiveRun]:
    """One MLflow run for one command; ``resume`` continues the run of an interrupted call, where it is still there.

    The configuration is logged as parameters. A run that ends by an exception is marked FAILED, one that is
    interrupted KILLED.

    Raises:
        TrackingError: the store cannot be used.
    """
    experiment = connect(config)
    if resume is not None and not _can_go_on(resume):
        resume = None
    place = {"run_id": resume} if resume else {"experiment_id": experiment, "run_name": command}
    active = attempt(lambda: mlflow.start_run(**place))
    try:
        attempt(lambda: mlflow.set_tag("medfocus.command", command))
        if resume is None:
            attempt(lambda: mlflow.log_params(_flat(config.model_dump())))
        yield active
    except BaseException as error:
        _end_early(RunStatus.KILLED if isinstance(error, KeyboardInterrupt | SystemExit) else RunStatus.FAILED)
        raise
    attempt(mlflow.end_run)


def _end_early(status: int) -> None:
    try:
        attempt(lambda: mlflow.end_run(RunStatus.to_string(status)))
    except TrackingError as error:  # what ended the run matters more
        log.warning("the MLflow run could not be marked as ended: %s", error)


def _can_go_on(run_id: str) -> bool:
    """Whether a run can be continued; somebody may have deleted it, or the store may be another one."""
    found = attempt(lambda: _find(run_id))
    if found is not None and found.info.lifecycle_stage == LifecycleStage.ACTIVE:
        return True
    log.warning(
        "the MLflow run of the earlier call %s; a new one begins",
        "is not in this store" if found is None else "was deleted",
    )
    return False


def _find(run_id: str) -> Run | None:
    try:
        return mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def log_parameters(values: Mapping[str, str]) -> None:
    """Log parameters a run has beside its configuration; a resumed run keeps those it has."""
    known = attempt(lambda: mlflow.get_run(mlflow.active_run().info.run_id)).data.params
    attempt(lambda: mlflow.log_params({key: value for key, value in values.items() if key not in known}))


def log_tags(values: Mapping[str, str]) -> None:
    """Tag the active run, each tag under ``medfocus.``."""
    mlflow.set_tags({f"medfocus.{key}": value for key, value in values.items()})


def log_metrics(values: Mapping[str, Any]) -> None:
    """Log the numbers among the values as metrics."""
    numbers = [(key, float(value)) for key, value in values.items() if isinstance(value, int | float)]
    for start in range(0, len(numbers), _MOST_METRICS):
        attempt(partial(mlflow.log_metrics, dict(numbers[start : start + _MOST_METRICS])))


def log_progress(figures: Mapping[str, float]) -> None:
    """Log how far the run is; its rows done are the step."""
    attempt(partial(mlflow.log_metrics, dict(figures), step=int(figures["rows_done"])))


def log_history(history: Sequence[Mapping[str, float]]) -> None:
    """Log what an epoch measured, each epoch a step."""
    for step, values in enumerate(history):
        attempt(partial(mlflow.log_metrics, dict(values), step=step))


def log_dataset(name: str, digest: str, context: str) -> None:
    """Log which data the run read: a name and the digest of its content.

    The digest is the first 36 characters MLflow keeps; paths stay out, they may tell who the data is about.
    """
    source = CodeDatasetSource(tags={"medfocus.digest": digest})
    attempt(lambda: mlflow.log_input(MetaDataset(source, name=name, digest=digest[:36]), context=context))


def log_files(folder: Path) -> None:
    """Log the files of a folder."""
    attempt(lambda: mlflow.log_artifacts(str(folder)))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            # Bytes of a path that are not UTF-8 cannot be kept.
            text = without_credentials(str(value)).encode("utf-8", "backslashreplace").decode()
            flat[f"{prefix}{key}"] = text[:_LONGEST_PARAMETER]
    return flat
