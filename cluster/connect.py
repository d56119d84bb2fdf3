"""Connecting to Ray: the cluster this machine belongs to, or one started here for the length of a command."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before Ray is imported: nothing is reported outside, and workers keep to what they are asked.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# A worker that decodes is idle while the models work, longer than the second after which Ray would end it;
# the next one takes two to begin.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
# Ray warns of four times as many workers. On two CPUs a run has seven, four of which hold next to nothing, and those of
# several commands in one Ray, as the demo's, add up.
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(4, os.cpu_count() or 1)))

import ray
from ray.data import DataContext

from medfocus.cluster.account import is_writable
from medfocus.cluster.errors import ClusterError

log = logging.getLogger("medfocus")
# The path of a Unix socket has at most 107 bytes; this is what Ray puts behind its folder.
_LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")


@contextmanager
def connected(address: str | None, cpus: int | None) -> Iterator[dict[str, float]]:
    """Be connected to Ray, quietly; yields the cluster's resources.

    Args:
        address: of a running cluster (``auto`` for the one this machine belongs to); None starts one here, whatever
            else runs on this machine, unless ``RAY_ADDRESS`` names one, as it does in a job submitted to a cluster.
        cpus: of a cluster started here; None takes all.

    Raises:
        ClusterError: there is no cluster at the address.
    """
    if ray.is_initialized():  # a caller's own connection, left as it is
        _quiet_data()
        yield ray.cluster_resources()
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    _check_listens(address)
    # Without an address Ray joins whatever cluster it finds on this machine.
    options = {"address": address} if address else {"address": "local", "num_cpus": cpus, **_start_options()}
    try:
        with _native_stderr_closed(), _signals_kept():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, configure_logging=True, **options)
    except (OSError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClusterError(
            f"Ray at {address or 'this machine'}: {reason}; start Ray or correct cluster.address"
        ) from error
    try:
        _quiet_data()
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def alive_nodes() -> list[str]:
    """Ids of the nodes of the cluster that this process is connected to."""
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _start_options() -> dict[str, Any]:
    """What ``ray.init`` takes to start a cluster here; the environment is prepared for its processes.

    Raises:
        ClusterError: there is no folder for Ray's sockets.
    """
    # Without a dashboard nobody reads what each process would report of its tasks and counters.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # The secret that the processes of the cluster share. Ray would keep one in the home, which may not be writable.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return {"include_dashboard": False, "_temp_dir": _temporary_folder()}


def _temporary_folder() -> str | None:
    """The folder for Ray's files; None where Ray's own choice can be used.

    Raises:
        ClusterError: no folder can be used.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    fault = _fault(usual)
    if fault is None:
        return None
    for folder in ("/tmp", "/var/tmp"):
        if _fault(folder) is None:
            log.warning("temporary files of Ray are in %s/ray, since %s %s", folder, usual, fault)
            return f"{folder}/ray"
    raise ClusterError(
        f"Ray at this machine: {usual} {fault}, and neither /tmp nor /var/tmp can be used; set RAY_TMPDIR to a folder"
        f" that can be written and whose path has at most {_LONGEST_FOLDER} bytes"
    )


def _fault(folder: str) -> str | None:
    """Why Ray cannot have its files in a folder; None where it can."""
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        return f"is too long a path for its sockets (at most {_LONGEST_FOLDER} bytes)"
    if not Path(folder).is_absolute():
        return "is not an absolute path"
    if not Path(folder).is_dir() or not is_writable(Path(folder) / "ray"):
        return "is not a folder that can be written"
    return None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself and ends the process; a handler that the command has set is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_listens(address: str | None) -> None:
    """Raise ClusterError if nothing listens at ``[ray://]HOST:PORT``: Ray itself takes minutes to say so."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        reason = error.strerror or error
        raise ClusterError(f"nothing answers at {address} ({reason}); start Ray or correct cluster.address") from error


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Ray's C++ part greets on file descriptor 2 whatever its log level; what goes wrong it raises in Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quiet_data() -> None:
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told once, by the command
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    # An actor that cannot begin, as one on a broken device, is replaced; after so many in a row the run ends.
    context.max_consecutive_actor_init_deaths = 2
    # A block is a shard: it must not be split on its way to the commit.
    context.target_max_block_size = None
