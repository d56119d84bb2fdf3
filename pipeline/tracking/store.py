"""The tracking store: where it is, the first connection to it, and a store that has moved with its folder.

The embedded store is SQLite in the work folder, with the files of its runs beside it. Its tables are made in a draft
that is renamed when it is whole: a command that is killed meanwhile leaves nothing behind, and one that starts at the
same time waits.
"""

import logging
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
# Seconds that a command waits for another one to make the store, which takes a few, and for a store that is busy.
_LONGEST_START, _LONGEST_BUSY = 180.0, 60.0
# What the later of two writers at the same moment is told; at its next try it finds what the other one has written.
_COLLISION = re.compile(
    r"UNIQUE constraint|duplicate (key|column)|Duplicate entry|(table|relation) \S+ already exists"
    r"|database (table )?is locked|deadlock",
    re.IGNORECASE,
)
# Columns of MLflow's tables that name places of files.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
# How a database without its driver is mended: the extra to install and the scheme that names its driver.
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
    """A tracking store that cannot be used; the message names it and the mend."""


def tracking_uri(config: Config) -> str:
    """``MLFLOW_TRACKING_URI``, else SQLite in the work folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(_own_database(config))


def shown_uri(config: Config) -> str:
    """The store's URI without the credentials it may hold."""
    return without_credentials(tracking_uri(config))


def sqlite_uri(database: Path) -> str:
    """The URI of an SQLite database, quoted where its path holds what means something in a URI.

    Of a URI that begins with ``sqlite:///`` MLflow makes the folder as it is written, quotes and all; of one that names
    the driver it does not.
    """
    plain = f"sqlite:///{database}"
    if sqlalchemy.make_url(plain).database == str(database):
        return plain
    return sqlalchemy.URL.create("sqlite+pysqlite", database=str(database)).render_as_string()


def connect(config: Config) -> str:
    """Point MLflow at the store and make the experiment if needed; returns the experiment's id.

    Raises:
        TrackingError: the store does not answer, cannot be written, or its experiment has been deleted.
    """
    _quiet()
    uri, name = tracking_uri(config), config.tracking.experiment
    given = "MLFLOW_TRACKING_URI" in os.environ
    mlflow.set_tracking_uri(uri)
    if not given:  # MLflow writes it there, where the next command of this process would take it for the user's wish
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    artifacts = _prepare(uri, config)
    experiment = attempt(lambda: mlflow.get_experiment_by_name(name))
    if artifacts is not None and _is_own(uri, config):
        attempt(lambda: _follow_move(_own_database(config), artifacts))
    experiment = experiment or attempt(lambda: _make_experiment(name, artifacts))
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise TrackingError(
            f"MLflow at {shown_uri(config)}: experiment {name} was deleted; restore it (mlflow experiments restore"
            f" --experiment-id {experiment.experiment_id}) or set tracking.experiment to another name"
        )
    return str(experiment.experiment_id)


def attempt(call: Callable[[], T]) -> T:
    """The result of a call to MLflow; where two commands write at the same moment, it is made again.

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
    """What an error of MLflow means and how it is mended, in one line without credentials."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    said = re.sub(r"^\([\w.]+\) ", "", one_line(without_credentials(text)))
    said = re.sub(r" failed with exception .*: ([^:]+?)['\")]*$", r" failed: \1", said)
    said = re.sub(r"^\{.*'M': (['\"])(.*?)\1[,}].*$", r"\2", said)  # PostgreSQL's message among its fields
    found = (mend for pattern, mend in _MENDS if re.search(pattern, said))
    mend = next(found, "start the server or correct MLFLOW_TRACKING_URI")
    shown = without_credentials(mlflow.get_tracking_uri())
    return TrackingError(f"MLflow at {shown}: {said[:300]}; {mend}")


def _quiet() -> None:
    """What fails in MLflow is raised; its warnings, links and traces beside that are for nobody."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A store that is down is told after seconds, not after MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def _prepare(uri: str, config: Config) -> str | None:
    """Make sure that a database can be used; returns where the files of its runs go, None where a server decides."""
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
    artifacts = _folder(Path(config.work).absolute()) / _ARTIFACTS if kind == "sqlite" else None
    place = engine.url.database
    if artifacts is not None and place and place != ":memory:" and not _holds_something(Path(place)):
        _make_database(Path(place).absolute(), artifacts.as_uri())
    attempt(lambda: engine.connect().close())
    engine.dispose()
    return artifacts.as_uri() if artifacts is not None else None


def _holds_something(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _make_database(database: Path, artifacts: str) -> None:
    """Make MLflow's tables; whoever comes meanwhile waits, and finds them."""
    # Takes most of a second to import, which users of a server need not wait.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _folder(database.parent)
    try:
        with FileLock(database.with_name(f".{database.name}.lock"), timeout=_LONGEST_START):
            if _holds_something(database):
                return
            draft = database.with_name(f".{database.name}.draft")
            draft.unlink(missing_ok=True)  # of a command that was killed
            attempt(lambda: SqlAlchemyStore(sqlite_uri(draft), artifacts).engine.dispose())
            draft.replace(database)
    except Timeout as error:
        raise TrackingError(
            f"{database}: another command has been making it for {_LONGEST_START:g} seconds; stop that one, or set work"
            " to another folder"
        ) from error
    except OSError as error:
        raise _tracking_error(error) from error


def _folder(path: Path) -> Path:
    """The folder, made if needed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"{path}: cannot be made ({error.strerror}); set work to a folder that can be written"
        ) from error
    return path


def _own_database(config: Config) -> Path:
    """The embedded store's file."""
    path = Path(config.work).absolute() / _DATABASE
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise TrackingError(f"work: the folder's name is not UTF-8 ({error.reason}); choose another folder") from error
    return path


def _is_own(uri: str, config: Config) -> bool:
    return sqlalchemy.make_url(uri).database == str(_own_database(config))


def _make_experiment(name: str, artifacts: str | None) -> Experiment:
    try:
        mlflow.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by another command at the same moment
            raise
    return mlflow.get_experiment_by_name(name)


def _follow_move(database: Path, artifacts: str) -> None:
    """Let the places of files that the store names follow the work folder, where that was moved or copied.

    MLflow keeps absolute paths only. A place that still exists stays, unless its files have come along in a copy.
    """
    here = _local_folder(artifacts)
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        matches = (re.match(rf"file://.*/{_ARTIFACTS}(?=/|$)", place or "") for (place,) in found)
        roots = {match[0] for match in matches if match}
        for root in sorted(roots - {artifacts}):
            there = _local_folder(root)
            if there.exists() and (not here.exists() or there.samefile(here)):
                continue
            for table, column in _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (artifacts, len(root) + 1, root, len(root) + 1, f"{root}/"),
                )
            connection.commit()
            event("the work folder has moved, and its runs and models with it", work=here.parent)


def _local_folder(uri: str) -> Path:
    """The path of a ``file:`` URI."""
    return Path(unquote(urlparse(uri).path))
