"""MLflow runs: one experiment, one run for each command; only the driver writes to it."""

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
    """One MLflow run for one command.

    The configuration is logged as parameters. A run that ends by an exception is marked FAILED, one that is interrupted
    KILLED.

    Args:
        command: name of the command, which becomes the name of the run and its tag ``medfocus.command``.
        config: configuration to log; ``tracking`` and ``work`` name the store.
        resume: id of the run of an interrupted call, which is continued if it still exists.

    Yields:
        The active run.

    Raises:
        TrackingError: the store cannot be used.
    """
    experiment = connect(config)
    if resume is not None and not _can_resume(resume):
        resume = None
    options = {"run_id": resume} if resume else {"experiment_id": experiment, "run_name": command}
    active = attempt(lambda: mlflow.start_run(**options))
    try:
        attempt(lambda: mlflow.set_tag("medfocus.command", command))
        if resume is None:
            attempt(lambda: mlflow.log_params(_flatten(config.model_dump())))
        yield active
    except BaseException as error:
        _mark_ended(RunStatus.KILLED if isinstance(error, KeyboardInterrupt | SystemExit) else RunStatus.FAILED)
        raise
    attempt(mlflow.end_run)


def _mark_ended(status: int) -> None:
    """End the active run with a status; where the store fails, only a warning is logged."""
    try:
        attempt(lambda: mlflow.end_run(RunStatus.to_string(status)))
    except TrackingError as error:  # the error that ended the run matters more
        log.warning("the MLflow run could not be marked as ended: %s", error)


def _can_resume(run_id: str) -> bool:
    """Whether a run can be continued; it may have been deleted, or be in another store."""
    earlier = attempt(lambda: _get_run(run_id))
    if earlier is not None and earlier.info.lifecycle_stage == LifecycleStage.ACTIVE:
        return True
    log.warning(
        "the MLflow run of the earlier call %s; a new one begins",
        "is not in this store" if earlier is None else "was deleted",
    )
    return False


def _get_run(run_id: str) -> Run | None:
    """The run, active or deleted; None where the store has none of the id."""
    try:
        return mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def log_parameters(values: Mapping[str, str]) -> None:
    """Log parameters of the active run beside its configuration; a resumed run keeps the values that it has."""
    logged = attempt(lambda: mlflow.get_run(mlflow.active_run().info.run_id)).data.params
    attempt(lambda: mlflow.log_params({key: value for key, value in values.items() if key not in logged}))


def log_tags(values: Mapping[str, str]) -> None:
    """Tag the active run; each name gets the prefix ``medfocus.``."""
    mlflow.set_tags({f"medfocus.{key}": value for key, value in values.items()})


def log_metrics(values: Mapping[str, Any]) -> None:
    """Log the numbers among the values as metrics of the active run; values of other types are skipped."""
    numbers = [(key, float(value)) for key, value in values.items() if isinstance(value, int | float)]
    for start in range(0, len(numbers), _MOST_METRICS):
        attempt(partial(mlflow.log_metrics, dict(numbers[start : start + _MOST_METRICS])))


def log_progress(figures: Mapping[str, float]) -> None:
    """Log the progress of the active run, with the number of finished rows (``rows_done``) as the step."""
    attempt(partial(mlflow.log_metrics, dict(figures), step=int(figures["rows_done"])))


def log_history(history: Sequence[Mapping[str, float]]) -> None:
    """Log the figures of each epoch of the active run, with the number of the epoch as the step."""
    for step, values in enumerate(history):
        attempt(partial(mlflow.log_metrics, dict(values), step=step))


def log_dataset(name: str, digest: str, context: str) -> None:
    """Log the data that the active run reads, without its path, which may contain the name of a person.

    Args:
        name: what the data is, such as ``shards``.
        digest: hexadecimal digest of its content; MLflow keeps the first 36 characters.
        context: the command.
    """
    source = CodeDatasetSource(tags={"medfocus.digest": digest})
    attempt(lambda: mlflow.log_input(MetaDataset(source, name=name, digest=digest[:36]), context=context))


def log_files(folder: Path) -> None:
    """Log the files of a folder as artifacts of the active run."""
    attempt(lambda: mlflow.log_artifacts(str(folder)))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of nested dictionaries as text, by keys that are joined with dots; without credentials."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            # MLflow cannot keep the bytes of a path that is not UTF-8.
            text = without_credentials(str(value)).encode("utf-8", "backslashreplace").decode()
            flat[f"{prefix}{key}"] = text[:_LONGEST_PARAMETER]
    return flat
