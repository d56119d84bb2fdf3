"""Servers for the tests: S3 (moto over HTTP), MLflow, an HTTP proxy and a Ray head, on free ports."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3(environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run an S3 server; yields its URL. ``environment`` is added to the server's own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _serving(command, f"http://127.0.0.1:{port}", environment or {}) as url:
        yield url


def s3_user(url: str) -> dict[str, str]:
    """Environment variables of a user of an S3 server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    """Run an MLflow tracking server with its database and artifacts in a folder; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    # Without the processes for background jobs, which take as long to start as the server.
    with _serving(command, f"http://127.0.0.1:{port}", {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as url:
        yield url


@contextmanager
def proxy(log: Path, user: str | None = None) -> Iterator[str]:
    """Run an HTTP proxy that logs its requests to a file; yields its ``host:port``. ``user`` is ``name:password``."""
    port = free_port()
    command = [
        sys.executable,
        str(Path(__file__).with_name("forward_proxy.py")),
        str(port),
        str(log),
        *([user] if user else []),
    ]
    with _serving(command, f"http://127.0.0.1:{port}", {}):
        yield f"127.0.0.1:{port}"


@dataclass(frozen=True)
class RayHead:
    """The head of a Ray cluster with its job server.

    Args:
        url: of the job server.
        address: of the control service, to which drivers connect.
        client_port: at which Ray Client listens, on the address of the machine.
        folder: from which it was started.
    """

    url: str
    address: str
    client_port: int
    folder: Path


@contextmanager
def ray_head(folder: Path, environment: Mapping[str, str]) -> Iterator[RayHead]:
    """Run a Ray cluster of one node with one CPU. ``environment`` is all that its processes get."""
    # Ray binds the other ports as it chooses them: one that is chosen here may be taken before Ray binds it.
    ports = {name: free_port() for name in ("port", "dashboard-port", "ray-client-server-port")}
    ports["dashboard-agent-listen-port"] = 0
    # Sockets of Ray have paths of at most 107 bytes.
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"]
    command += [f"--temp-dir={folder}", "--disable-usage-stats", "--object-store-memory=100000000"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + 90
        while not _answers(f"{url}/api/version"):
            assert head.poll() is None and time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield RayHead(url, f"127.0.0.1:{ports['port']}", ports["ray-client-server-port"], folder)
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in (*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        head.wait(30)


@contextmanager
def _serving(command: list[str], url: str, environment: Mapping[str, str]) -> Iterator[str]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not _answers(url):
            assert process.poll() is None, f"{command[2]} ended with {process.returncode}"
            assert time.monotonic() < deadline, f"{command[2]} did not answer"
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
