"""The environment variables that MedFocus sets, all in one place.

``medfocus.pipeline`` and ``medfocus.cluster.connect`` call ``prepare_environment`` before they import MLflow and Ray,
which read some of the variables at their import. A variable that is set already keeps its value.

Nothing here has to travel to workers in a ``runtime_env``. A cluster that is started here inherits the environment. On
an existing cluster, Ray Train passes its own variables on to its workers, each worker that imports
``medfocus.pipeline`` calls ``prepare_environment`` itself, and the other variables concern the driver, or Ray's own
processes, which run already. What an actor needs before its process begins stands with the actor
(``medfocus.pipeline.execution.actor.ENVIRONMENT``).
"""

import getpass
import os
import secrets
import sys
from pathlib import Path

from medfocus.cluster.account import own_folder

DEFAULTS = {
    # MLflow and Ray report no usage statistics. MLflow reads its variable when it is imported.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow prints no links and no progress bars, and reports after seconds that a server is down, not after minutes.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's C++ part logs fatal errors only: errors that a command can act on are raised in Python.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Training uses version 2 of Ray Train. Ray reads this when ``ray.train`` is imported.
    "RAY_TRAIN_V2_ENABLED": "1",
    # A worker that decodes is idle while the models work, for longer than the second after which Ray ends it. The next
    # worker takes two seconds to start.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    # Ray warns when it has started four times as many workers. On two CPUs a run has seven workers, four of which hold
    # next to nothing, and the workers of several commands in one Ray, as in the demo, add up.
    "RAY_worker_maximum_startup_concurrency": str(max(4, os.cpu_count() or 1)),
}
# For a Ray that is started here. It has no dashboard, so nobody reads the task events and metrics of its processes.
OWN_CLUSTER = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
}
# For a command that shows no log of libraries: the errors of MLflow and of Alembic are raised. MLflow sets the levels
# of both when it is imported.
QUIET = {"MLFLOW_LOGGING_LEVEL": "CRITICAL"}


def prepare_environment(*, own_cluster: bool = False, quiet: bool = False) -> None:
    """Set the environment variables of this process and of the processes that it starts.

    An account without a home folder gets one below the temporary folder: Ray cannot be imported without. An account
    without a name gets one from its user id: MLflow asks for it. A home folder that can be read but not written stays,
    since it may hold settings and credentials.

    A process that has a token of Ray shows it: for a cluster that is named by its address, Ray itself would not.

    Args:
        own_cluster: this process is about to start Ray itself; sets also the variables of ``OWN_CLUSTER`` and the
            secret that the processes of the cluster share.
        quiet: this process is a command that shows no log of libraries; sets also the variables of ``QUIET``.

    Raises:
        ClusterError: there is no home folder, and no temporary folder can be written.
    """
    for name, value in (DEFAULTS | (OWN_CLUSTER if own_cluster else {}) | (QUIET if quiet else {})).items():
        os.environ.setdefault(name, value)
    if own_cluster and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Ray itself would keep its secret in the home folder, which may not be writable.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    home = os.path.expanduser("~")  # noqa: PTH111  Path raises an error where there is no home
    if not os.access(home, os.R_OK | os.X_OK) or not Path(home).is_dir():
        os.environ["HOME"] = str(own_folder())
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the user id has no entry in the list of users
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    if "ray" not in sys.modules and authentication_token():  # Ray reads the mode when it is imported, and only then
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def authentication_token() -> str | None:
    """The token with which this process is admitted to a Ray cluster, where Ray looks for it; None if it has none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")  # noqa: PTH111
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None
