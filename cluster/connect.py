"""Connecting to Ray: the cluster this machine belongs to, or one started here for the length of a command.

How much Ray prints follows the level of the logger ``medfocus``. At DEBUG, Ray's own logs, the output of its workers
and the progress bars of Ray Data are shown. At any other level Ray is quiet, and a command reports what fails.
"""

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from medfocus.cluster.account import is_writable
from medfocus.cluster.authentication import MEND, refusal
from medfocus.cluster.environment import prepare_environment
from medfocus.cluster.errors import ClusterError

prepare_environment()

import ray  # noqa: E402  it reads the environment

from medfocus.cluster.data_context import scoped_data_context  # noqa: E402  it imports Ray

log = logging.getLogger("medfocus")
_ADDRESS = re.compile(r"[\w.\[\]:-]+:\d+\b")
_RAY_LOGGERS = ("ray", "ray.data", "ray.train")
# The path of a Unix socket has at most 107 bytes; this is what Ray puts behind its folder.
_LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")


@contextmanager
def connected(address: str | None, cpus: int | None) -> Iterator[dict[str, float]]:
    """Be connected to Ray; yields the cluster's resources.

    A connection that the caller has made is used and left open. The levels of Ray's loggers and the context of Ray Data
    are changed inside the block only. Ray is quiet unless the logger ``medfocus`` has the level DEBUG on entry.

    Args:
        address: address of a running cluster (``auto`` for the one this machine belongs to). None starts a cluster
            here, whatever else runs on this machine, unless ``RAY_ADDRESS`` names one, as it does in a job that was
            submitted to a cluster.
        cpus: number of CPUs of a cluster started here; None takes all.

    Raises:
        ClusterError: there is no cluster at the address, or no folder for the files of a cluster started here.
    """
    verbose = log.getEffectiveLevel() <= logging.DEBUG
    with ExitStack() as stack:
        stack.enter_context(_log_levels_restored())
        if not ray.is_initialized():
            stack.enter_context(_session(address, cpus, verbose))
        stack.enter_context(_data_settings(verbose))
        if not verbose:
            for name in _RAY_LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL)
        yield ray.cluster_resources()


def cluster_address(address: str | None) -> str | None:
    """Address of the cluster to connect to: the configured one, else ``RAY_ADDRESS``; None starts a cluster here."""
    return address or os.environ.get("RAY_ADDRESS") or None


def longest_wait(address: str | None, minutes: float) -> float:
    """Minutes to wait for nodes: none for a cluster that is started here, which has no autoscaler.

    Args:
        address: the configured address.
        minutes: the configured wait.
    """
    return minutes if cluster_address(address) else 0


@contextmanager
def _session(address: str | None, cpus: int | None, verbose: bool) -> Iterator[None]:
    """A connection to Ray that ends with the block.

    Raises:
        ClusterError: there is no cluster at the address, or no folder for the files of a cluster started here.
    """
    address = cluster_address(address)
    _check_listens(address)
    options: dict[str, Any]
    if address:
        options = {"address": address}
    else:
        prepare_environment(own_cluster=True)
        # Without an address, Ray would join any cluster that it finds on this machine.
        options = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": _temporary_folder()}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # Ray's own handler, which ends Ray and the process, serves where the caller has none.
        with _signal_handler_kept() if callable(handler) else nullcontext():
            _start_session(options, verbose)
        yield
    finally:
        ray.shutdown()
        _restore_signal_handler(handler)


def _start_session(options: dict[str, Any], verbose: bool) -> None:
    """Call ``ray.init``.

    Raises:
        ClusterError: Ray cannot be reached or started.
    """
    level = logging.INFO if verbose else logging.ERROR
    try:
        with nullcontext() if verbose else _native_stderr_closed():
            ray.init(logging_level=level, log_to_driver=verbose, configure_logging=True, **options)
    except (OSError, ValueError, ray.exceptions.AuthenticationError) as error:
        place = "this machine" if options["address"] == "local" else options["address"]
        if isinstance(error, ray.exceptions.AuthenticationError):
            mend = MEND if options["address"] != "local" else "correct RAY_AUTH_TOKEN_PATH, or unset it"
            raise ClusterError(f"Ray at {place}: {error.message}; {mend}") from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        # The address of a cluster that Ray has found by itself stands in its message alone.
        if (address := _ADDRESS.search(reason)) and (fault := refusal(address[0])):
            raise ClusterError(f"Ray at {place}: {fault}") from error
        raise ClusterError(f"Ray at {place}: {reason}; start Ray or correct cluster.address") from error


@contextmanager
def _signal_handler_kept() -> Iterator[None]:
    """Keep Ray from setting its handlers of SIGTERM inside the block.

    ``ray.init`` sets them before it has started its processes. They raise SystemExit wherever the process is, for
    instance while logging releases its lock after a fork. Python drops that error, and the lock stays taken for ever.
    """
    set_handler = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = set_handler


@contextmanager
def _data_settings(verbose: bool) -> Iterator[None]:
    """The settings of Ray Data that a stream of shards needs."""
    with scoped_data_context() as context:
        if not verbose:
            context.enable_progress_bars = False
            context.print_on_execution_start = False
        context.raise_original_map_exception = True
        # An actor that cannot start, for instance on a broken device, is replaced. After this many in a row the run
        # ends.
        context.max_consecutive_actor_init_deaths = 2
        # A block is a shard: Ray Data must not split it on its way to the commit.
        context.target_max_block_size = None
        yield


@contextmanager
def _log_levels_restored() -> Iterator[None]:
    """Restore the levels of Ray's loggers after the block; ``ray.init`` changes them too."""
    levels = {name: logging.getLogger(name).level for name in _RAY_LOGGERS}
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _restore_signal_handler(handler: Any) -> None:
    """Set the caller's handler of SIGTERM again, if Ray has replaced it; Python allows it in the main thread."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Drop what is written to file descriptor 2: Ray's C++ part greets there whatever its log level.

    Errors of Ray are raised in Python.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _check_listens(address: str | None) -> None:
    """Raise ClusterError if nothing listens at ``[ray://]HOST:PORT``: Ray itself takes minutes to report it."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        reason = error.strerror or error
        raise ClusterError(f"nothing answers at {address} ({reason}); start Ray or correct cluster.address") from error
    if fault := refusal(f"{host}:{port}"):
        raise ClusterError(f"Ray at {address}: {fault}")


def _temporary_folder() -> str | None:
    """The folder for Ray's files; None where Ray's own choice can be used.

    Raises:
        ClusterError: no folder can be used.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    fault = _folder_fault(usual)
    if fault is None:
        return None
    for folder in ("/tmp", "/var/tmp"):
        if _folder_fault(folder) is None:
            log.warning("temporary files of Ray are in %s/ray, since %s %s", folder, usual, fault)
            return f"{folder}/ray"
    raise ClusterError(
        f"Ray at this machine: {usual} {fault}, and neither /tmp nor /var/tmp can be used; set RAY_TMPDIR to a folder"
        f" that can be written and whose path has at most {_LONGEST_FOLDER} bytes"
    )


def _folder_fault(folder: str) -> str | None:
    """Why Ray cannot keep its files in a folder; None where it can."""
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        return f"is too long a path for its sockets (at most {_LONGEST_FOLDER} bytes)"
    if not Path(folder).is_absolute():
        return "is not an absolute path"
    if not Path(folder).is_dir() or not is_writable(Path(folder) / "ray"):
        return "is not a folder that can be written"
    return None
