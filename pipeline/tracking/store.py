"""The tracking store: its URI, the connection to it, and what happens when its folder moves.

The embedded store is an SQLite database in the work folder, with the files of its runs beside it. Its tables are
created in a draft, which is renamed when it is complete. A command that is killed meanwhile leaves no broken database
behind. A command that starts meanwhile waits.
"""

import os
import random
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlparse

import mlflow
import sqlalchemy
from filelock import FileLock, Timeout
from mlflow.entities import Experiment, LifecycleStage
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.uri import is_local_uri
from sqlalchemy.exc import SQLAlchemyError

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import event, one_line
from medfocus.pipeline.errors import MedFocusError

T = TypeVar("T")

_DATABASE, _ARTIFACTS = "mlflow.db", "mlartifacts"
# Seconds that a command waits while another one creates the store, which takes a few, and while the store is busy.
_LONGEST_START, _LONGEST_BUSY = 180.0, 60.0
# Errors of the later of two writers at the same moment; its next attempt finds what the other one has written.
_COLLISION = re.compile(
    r"UNIQUE constraint|duplicate (key|column)|Duplicate entry|(table|relation) \S+ already exists"
    r"|database (table )?is locked|deadlock",
    re.IGNORECASE,
)
# Columns of MLflow's tables that hold paths of files.
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
# For a database whose driver is not installed: the extra to install, and the URI scheme that names its driver.
_DRIVERS = {"postgresql": ("postgres", "postgresql+pg8000"), "mysql": ("mysql", "mysql+pymysql")}
_MENDS = (
    (r"error code 40[13]\b", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who may do that"),
    (r"'?(deleted|active)'? (state|lifecycle_stage)", "it was deleted meanwhile; the same call goes on with a new run"),
    (r"out-of-date database schema", "back it up, then run mlflow db upgrade with its URI"),
    (r"disk is full|No space left|quota exceeded", "free some space, or set work to a folder on another disk"),
    (r"readonly database|unable to open database", "see that the file and its folder can be written"),
    (r"file is not a database|malformed", "the file is damaged; restore it, or move it away to begin a new store"),
)


class TrackingError(MedFocusError):
    """The tracking store cannot be used; the message names the store and the mend."""


def tracking_uri(config: Config) -> str:
    """The URI of the store: ``MLFLOW_TRACKING_URI``, else that of the SQLite database in the work folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(_embedded_database(config))


def shown_uri(config: Config) -> str:
    """The URI of the store without the credentials that it may contain, for messages."""
    return without_credentials(tracking_uri(config))


def sqlite_uri(database: Path) -> str:
    """The URI of an SQLite database; characters of the path that have a meaning in a URI are quoted.

    A quoted URI names the driver: for a URI that begins with ``sqlite:///``, MLflow creates the folder, and takes the
    quoted characters literally.
    """
    plain = f"sqlite:///{database}"
    if sqlalchemy.make_url(plain).database == str(database):
        return plain
    return sqlalchemy.URL.create("sqlite+pysqlite", database=str(database)).render_as_string()


def connect(config: Config) -> str:
    """Connect MLflow to the store, and create the experiment if needed.

    Args:
        config: ``tracking`` names the experiment, ``work`` the folder of the embedded store.

    Returns:
        The id of the experiment.

    Raises:
        TrackingError: the store does not answer, cannot be written, or its experiment has been deleted.
    """
    uri, name = tracking_uri(config), config.tracking.experiment
    from_environment = "MLFLOW_TRACKING_URI" in os.environ
    mlflow.set_tracking_uri(uri)
    if (
        not from_environment
    ):  # MLflow sets the variable, which the next command of this process would take for the user's
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    artifacts = _prepare_database(uri, config)
    experiment = attempt(lambda: mlflow.get_experiment_by_name(name))
    if artifacts is not None and _is_embedded(uri, config):
        attempt(lambda: _relocate(_embedded_database(config), artifacts))
    experiment = experiment or attempt(lambda: _create_experiment(name, artifacts))
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise TrackingError(
            f"MLflow at {shown_uri(config)}: experiment {name} was deleted; restore it (mlflow experiments restore"
            f" --experiment-id {experiment.experiment_id}) or set tracking.experiment to another name"
        )
    return str(experiment.experiment_id)


def attempt(call: Callable[[], T]) -> T:
    """The result of a call to MLflow; while another command writes at the same time, it is retried for up to a minute.

    Args:
        call: the call, without arguments.

    Raises:
        TrackingError: the call fails; one line with the mend.
    """
    deadline, pause = time.monotonic() + _LONGEST_BUSY, 0.1
    while True:
        try:
            return call()
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
            if not _COLLISION.search(str(error)) or time.monotonic() > deadline:
                raise _tracking_error(error) from error
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, 2.0)


def _tracking_error(error: Exception) -> TrackingError:
    """The cause of an error of MLflow and its mend, in one line without credentials."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    cause = re.sub(r"^\([\w.]+\) ", "", one_line(without_credentials(text)))
    cause = re.sub(r" failed with exception .*: ([^:]+?)['\")]*$", r" failed: \1", cause)
    cause = re.sub(r"^\{.*'M': (['\"])(.*?)\1[,}].*$", r"\2", cause)  # PostgreSQL's message among its fields
    mends = (mend for pattern, mend in _MENDS if re.search(pattern, cause))
    mend = next(mends, "start the server or correct MLFLOW_TRACKING_URI")
    uri = without_credentials(mlflow.get_tracking_uri())
    return TrackingError(f"MLflow at {uri}: {cause[:300]}; {mend}")


def _prepare_database(uri: str, config: Config) -> str | None:
    """Check that a database can be used, and create an SQLite database that does not exist yet.

    Args:
        uri: URI of the store.
        config: ``work`` is the folder for the files of runs.

    Returns:
        The URI of the folder for the files of runs; None where a server decides it.

    Raises:
        TrackingError: the database cannot be used.
    """
    kind, _, driver = urlparse(uri).scheme.partition("+")
    if kind in ("", "file") and is_local_uri(uri) and not MLFLOW_ALLOW_FILE_STORE.get():
        raise TrackingError(
            f"MLflow at {without_credentials(uri)}: MLflow no longer keeps up stores that are a folder; unset"
            " MLFLOW_TRACKING_URI to have one in the work folder, or move the runs with mlflow migrate-filestore"
        )
    if kind not in DATABASE_ENGINES:
        return None
    try:
        engine = sqlalchemy.create_engine(uri)
    except ImportError as error:
        extra, scheme = _DRIVERS.get(kind, ("", ""))
        mend = f"pip install 'medfocus[{extra}]' and begin the URI with {scheme}://" if extra and not driver else (
            f"pip install {error.name}"
        )  # fmt: skip
        raise TrackingError(
            f"MLflow at {without_credentials(uri)}: the database's driver {error.name} is not installed; {mend}"
        ) from error
    except SQLAlchemyError as error:
        raise _tracking_error(error) from error
    artifacts = _make_folder(Path(config.work).absolute()) / _ARTIFACTS if kind == "sqlite" else None
    file = engine.url.database
    if artifacts is not None and file and file != ":memory:" and not _has_content(Path(file)):
        _create_database(Path(file).absolute(), artifacts.as_uri())
    attempt(lambda: engine.connect().close())
    engine.dispose()
    return artifacts.as_uri() if artifacts is not None else None


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _create_database(database: Path, artifacts: str) -> None:
    """Create a database with MLflow's tables; other commands wait until it exists."""
    # The import takes most of a second, and users of a server do not need it.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _make_folder(database.parent)
    try:
        with FileLock(database.with_name(f".{database.name}.lock"), timeout=_LONGEST_START):
            if _has_content(database):
                return
            draft = database.with_name(f".{database.name}.draft")
            draft.unlink(missing_ok=True)  # left by a command that was killed
            attempt(lambda: SqlAlchemyStore(sqlite_uri(draft), artifacts).engine.dispose())
            draft.replace(database)
    except Timeout as error:
        raise TrackingError(
            f"{database}: another command has been making it for {_LONGEST_START:g} seconds; stop that one, or set work"
            " to another folder"
        ) from error
    except OSError as error:
        raise _tracking_error(error) from error


def _make_folder(path: Path) -> Path:
    """The folder, which is created if needed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"{path}: cannot be made ({error.strerror}); set work to a folder that can be written"
        ) from error
    return path


def _embedded_database(config: Config) -> Path:
    """The path of the embedded store."""
    path = Path(config.work).absolute() / _DATABASE
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise TrackingError(f"work: the folder's name is not UTF-8 ({error.reason}); choose another folder") from error
    return path


def _is_embedded(uri: str, config: Config) -> bool:
    return sqlalchemy.make_url(uri).database == str(_embedded_database(config))


def _create_experiment(name: str, artifacts: str | None) -> Experiment:
    try:
        mlflow.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another command created it at the same moment
            raise
    return mlflow.get_experiment_by_name(name)


def _relocate(database: Path, artifacts: str) -> None:
    """Update the paths of files in the embedded store where the work folder has been moved or copied.

    MLflow keeps absolute paths only. A path that still exists stays, unless a copy of the work folder has its files
    too.

    Args:
        database: path of the embedded store.
        artifacts: URI of the folder of its files.
    """
    new = _local_folder(artifacts)
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        locations = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        matches = (re.match(rf"file://.*/{_ARTIFACTS}(?=/|$)", location or "") for (location,) in locations)
        roots = {match[0] for match in matches if match}
        for root in sorted(roots - {artifacts}):
            old = _local_folder(root)
            if old.exists() and (not new.exists() or old.samefile(new)):
                continue
            for table, column in _PATH_COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (artifacts, len(root) + 1, root, len(root) + 1, f"{root}/"),
                )
            connection.commit()
            event("the work folder has moved, and its runs and models with it", work=new.parent)


def _local_folder(uri: str) -> Path:
    """The path of a ``file:`` URI."""
    return Path(unquote(urlparse(uri).path))
