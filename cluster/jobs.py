"""Jobs on a cluster through Ray's job server: submit, list, follow and stop them.

The job server is part of the dashboard of the head. Everything in a job's description is shown there to everybody who
may see the dashboard, so a description must hold no credentials.
"""

import asyncio
import logging
import os
import secrets
import shlex
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from medfocus.cluster.authentication import fault, is_control_service
from medfocus.cluster.environment import prepare_environment
from medfocus.cluster.errors import ClusterError
from medfocus.cluster.job_output import VARIABLE, description

prepare_environment()

from ray.exceptions import AuthenticationError  # noqa: E402  it reads the environment
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType  # noqa: E402  as above

log = logging.getLogger("medfocus")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Ray takes the address from this variable, whatever its caller says.
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
# The command that the shell of the head finds on the PATH with which Ray was started.
_COMMAND = "medfocus"
_ATTEMPTS = 3  # to submit
# What a job says of the call that has submitted it.
_CALL = "medfocus_call"
# Loggers that tell each connection and each package.
_CLIENT_LOGGERS = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
# Seconds: for a request; without news of a job that is followed, until its state is asked for; between two attempts to
# connect again; until these are given up; for a job to stop in order, after which Ray kills it.
_LONGEST_REQUEST, _SILENCE, _PAUSE, _PATIENCE, _LONGEST_STOP = 10.0, 2.0, 2.0, 120.0, 60
_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@dataclass(frozen=True)
class Job:
    """A job as the job server describes it.

    Args:
        id: the name it was submitted with.
        state: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``.
        command: the command line, as a shell takes it.
        started: seconds since 1970.
        seconds: how long it has run, up to now if it has not ended.
        exit_code: of the command, once it has ended by itself.
        message: what Ray says about the state.
    """

    id: str
    state: str
    command: str
    started: float | None
    seconds: float | None
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state in _ENDED


class _Unreachable(ClusterError):
    """The job server does not answer a request."""


class _Refusal(ClusterError):
    """The job server answers a request with an error.

    Args:
        url: of the job server.
        status: HTTP status.
        text: body of the answer; the last line of a trace names the error.
    """

    def __init__(self, url: str, status: int, text: str):
        reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
        super().__init__(f"the job server at {url} refuses ({status}): {reason}; see the log of the dashboard")
        self.status = status


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client with a limit of time for each request, and with errors that carry the HTTP status."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_LONGEST_REQUEST, **options)

    def _raise_error(self, response: Any) -> None:
        raise _Refusal(self.get_address(), response.status_code, response.text)


class JobServer:
    """The job server of a cluster.

    Args:
        address: its URL, or ``HOST:PORT``; None takes what the environment names, else the end of a tunnel here.

    Raises:
        ClusterError: there is no job server at the address, or it does not admit this process.
    """

    def __init__(self, address: str | None):
        self.url = _url(address)
        _check_listens(self.url)
        for name in _CLIENT_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        before = os.environ.get(_ADDRESS_VARIABLE)
        os.environ[_ADDRESS_VARIABLE] = self.url
        try:
            self._client = _Client(self.url)
        except AuthenticationError as error:
            raise ClusterError(f"the job server at {self.url}: {fault()}") from error
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # of requests, or of what it reads
            raise ClusterError(_other_server(self.url)) from error
        finally:
            os.environ.pop(_ADDRESS_VARIABLE)
            if before is not None:
                os.environ[_ADDRESS_VARIABLE] = before

    def submit(self, id: str, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        """Submit a command of MedFocus. A request that is lost is sent again, and makes no second job.

        The command runs on the head and takes no CPU of the cluster for itself.

        Args:
            id: name of the job, which no other job of the cluster has.
            arguments: the command line behind ``medfocus``.
            variables: environment variables of the command and of its workers. The dashboard shows them.

        Raises:
            ClusterError: there is a job of this id, or the job server refuses this one.
        """
        if self._find(id) is not None:
            raise ClusterError(f"job {id} exists already; see medfocus jobs {id}, or give another --id")
        environment = {**variables, VARIABLE: description(), "RAY_JOB_STOP_WAIT_TIME_S": str(_LONGEST_STOP)}
        call = {_CALL: secrets.token_hex(8)}  # by which a job of a request whose answer is lost is recognised
        for left in reversed(range(_ATTEMPTS)):
            try:
                with self._told():
                    self._client.submit_job(
                        submission_id=id,
                        entrypoint=shlex.join([_COMMAND, *arguments]),
                        runtime_env={"env_vars": environment},
                        metadata=dict(call),
                    )
                return
            except (_Unreachable, _Refusal):
                time.sleep(_PAUSE)
                if self._was_submitted(id, call):
                    return
                if not left:
                    raise

    def job(self, id: str) -> Job:
        """The job of an id.

        Raises:
            ClusterError: there is none, or the job server does not answer.
        """
        job = self._find(id)
        if job is None:
            raise ClusterError(f"{self.url} knows no job {id}; medfocus jobs lists those that it knows")
        return job

    def jobs(self) -> list[Job]:
        """All jobs that were submitted to the cluster, the latest last."""
        with self._told():
            jobs = [_job(details) for details in self._client.list_jobs() if details.type == JobType.SUBMISSION]
        return sorted(jobs, key=lambda job: job.started or 0)

    def last_lines(self, id: str, number: int) -> list[str]:
        """The last lines of the log of a job, at most ``number``."""
        with self._told():
            return str(self._client.get_job_logs(id)).splitlines()[-number:]

    def stop(self, id: str) -> Job:
        """Stop a job in order and wait until it has ended; a job that has ended stays as it is.

        Raises:
            ClusterError: there is no such job, the job server does not answer, or the job does not end.
        """
        self.job(id)
        with self._told():
            self._client.stop_job(id)
        deadline = time.monotonic() + _LONGEST_STOP + _LONGEST_REQUEST
        while not (job := self.job(id)).has_ended:
            if time.monotonic() > deadline:
                raise ClusterError(f"job {id} was told to stop and is still {job.state}; see medfocus jobs {id}")
            time.sleep(0.5)
        return job

    def follow(self, id: str) -> Iterator[str]:
        """Lines of the log of a job, from the first one, as they are written, until the job has ended.

        A connection that breaks is made again, and no line comes twice.

        Raises:
            ClusterError: there is no such job, or the connection cannot be made again. The job goes on.
        """
        position, rest, broken_since = 0, "", None
        while True:
            received = 0
            try:
                for chunk in self._chunks(id):
                    text = chunk[max(0, position - received) :]
                    received += len(chunk)
                    position, broken_since = max(position, received), None
                    *lines, rest = (rest + text).split("\n")
                    yield from lines
                if ended := self.job(id).has_ended:
                    with self._told():  # what was written since the last part of the log
                        text = str(self._client.get_job_logs(id))[position:]
                    yield from (rest + text).splitlines()
            except (OSError, RuntimeError, aiohttp.ClientError, _Unreachable) as error:
                ended = False
                if broken_since is None:
                    broken_since = time.monotonic()
                    log.warning("the connection to %s is broken; trying again", self.url)
                if time.monotonic() - broken_since > _PATIENCE:
                    raise ClusterError(
                        f"{self.url} does not answer any more; job {id} goes on while its cluster does: connect again"
                        f" and run medfocus jobs {id} --logs"
                    ) from error
            if ended:
                return
            time.sleep(_PAUSE)

    def _chunks(self, id: str) -> Iterator[str]:
        """Parts of the log of a job as one connection brings them; ends when the job does, or the connection."""
        waiting = False
        with asyncio.Runner() as runner:
            log_parts = self._client.tail_job_logs(id)
            arrival: asyncio.Task[str | None] | None = None
            while True:
                arrival = arrival or runner.get_loop().create_task(_next(log_parts))
                if runner.run(_arrives(arrival)):
                    chunk, arrival = arrival.result(), None
                    if chunk is None:
                        return
                    yield chunk
                    continue
                job = self.job(id)
                if job.has_ended:
                    return
                if job.state == JobStatus.PENDING and not waiting:
                    waiting = True
                    log.info("job %s waits to start: %s", id, job.message)

    def _find(self, id: str) -> Job | None:
        """The job of an id; None where there is none."""
        try:
            with self._told():
                return _job(self._client.get_job_info(id))
        except _Refusal as refusal:
            if refusal.status == 404:
                return None
            raise

    def _was_submitted(self, id: str, call: Mapping[str, str]) -> bool:
        """Whether the job of an id is that of a call; also false where the job server does not answer."""
        try:
            with self._told():
                return bool(call.items() <= (self._client.get_job_info(id).metadata or {}).items())
        except (_Unreachable, _Refusal):
            return False

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn errors of requests into ClusterError.

        Raises:
            _Unreachable: the job server does not answer.
            ClusterError: it does not admit this process.
        """
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(f"the job server at {self.url}: {fault()}") from error
        except OSError as error:
            raise _Unreachable(f"the job server at {self.url} does not answer any more; connect again") from error


def _url(address: str | None) -> str:
    """The URL of the job server; None takes what the environment names, else the end of a tunnel on this machine.

    Raises:
        ClusterError: the address is no URL of a web server, as that which drivers connect to.
    """
    named = address or os.environ.get(_ADDRESS_VARIABLE) or os.environ.get("RAY_ADDRESS") or DEFAULT_ADDRESS
    if address is None and named in ("auto", "local"):  # words of RAY_ADDRESS for a cluster of this machine
        named = DEFAULT_ADDRESS
    url = named if "://" in named else f"http://{named}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(f"{named}: not the URL of a job server; give one such as {DEFAULT_ADDRESS} as --address")
    return url.rstrip("/")


def _place(url: str) -> tuple[str, int]:
    """Host and port of a URL.

    Raises:
        ClusterError: its port is no number.
    """
    parts = urlsplit(url)
    try:
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ClusterError(f"{url}: {error}; correct --address") from error


def _check_listens(url: str) -> None:
    """Raise ClusterError if nothing listens at a URL."""
    try:
        socket.create_connection(_place(url), timeout=5).close()
    except OSError as error:
        raise ClusterError(
            f"no job server answers at {url} ({error.strerror or error}); start the cluster with its dashboard, open a"
            " tunnel to its port 8265, or correct --address"
        ) from error


def _other_server(url: str) -> str:
    """What may be wrong where something listens at a URL that does not answer as a job server does, and the mend."""
    host, port = _place(url)
    if is_control_service(f"{host}:{port}"):
        return f"{url} is where drivers connect to Ray; give the port of the dashboard, 8265 by default, as --address"
    return (
        f"what listens at {url} does not answer as Ray's job server does; give the URL of the dashboard as --address,"
        " and see that no proxy is used for it (NO_PROXY)"
    )


def _job(details: JobDetails) -> Job:
    """A job as Ray describes it; times there are in milliseconds."""
    started = None if details.start_time is None else details.start_time / 1000
    end = time.time() if details.end_time is None else details.end_time / 1000
    return Job(
        id=details.submission_id or details.job_id or "",
        state=str(details.status),
        command=details.entrypoint,
        started=started,
        seconds=None if started is None else max(0.0, end - started),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


async def _next(parts: AsyncIterator[str]) -> str | None:
    """The next part of a log; None at its end."""
    return await anext(parts, None)


async def _arrives(arrival: asyncio.Task[str | None]) -> bool:
    """Whether a part of a log arrives in time."""
    return bool((await asyncio.wait({arrival}, timeout=_SILENCE))[0])
