"""Injects faults into ``score`` and compares its output with an undisturbed run's.

The tests of faults and ``benchmarks.faults`` share it.
"""

import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate

HOOKS = Path(__file__).parent / "hooks"
# Longest time of a run, in seconds; then the test fails.
_TIMEOUT = 300.0


@dataclass
class ScoreCommand:
    """One call of ``medfocus score``, which can be run again after an interruption.

    Args:
        shards: path or URI of the shards.
        out: path or URI of the output.
        model: URI of the model.
        settings: ``section.key=value`` settings.
        environment: variables that are added to the process's own.
    """

    shards: str
    out: str
    model: str
    settings: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start the command in a process group of its own, which includes the Ray that it starts."""
        arguments = ["score", self.shards, self.out, "--model", self.model, *options]
        return start_command(arguments, self.settings, self.environment)

    def finish(self, *options: str, code: int = 0) -> dict[str, Any]:
        """Run the command to its end; see ``wait_for_result``."""
        return wait_for_result(self.start(*options), code)

    def parts(self) -> int:
        """Number of shards whose predictions are committed."""
        return len((locate(self.out, StorageSection()) / "predictions").files(".parquet"))

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of ``predictions`` or ``quarantine``."""
        place = locate(self.out, StorageSection()) / kind
        paths = [(place / name).path for name in place.files(".parquet")]
        tables = [pq.read_table(path, filesystem=place.arrow_filesystem) for path in paths]
        return [row for table in tables for row in table.to_pylist()]


def start_command(
    arguments: Sequence[str], settings: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start a command of ``medfocus`` with the hooks, in a process group of its own.

    Args:
        arguments: the command and its arguments.
        settings: ``section.key=value`` settings.
        environment: variables that are added to the process's own.
    """
    options = [part for setting in settings for part in ("--set", setting)]
    path = os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "medfocus", *arguments, *options, "--json"],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_result(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """Wait for a command that must end with an exit code.

    Returns:
        Its JSON result, empty where it failed, with the text of its stderr as ``stderr``.
    """
    out, stderr = process.communicate(timeout=_TIMEOUT)
    assert process.returncode == code, f"exit {process.returncode}: {stderr[-2000:]}"
    result = json.loads(out.splitlines()[-1]) if code in (0, 3) else {}
    return {**result, "stderr": stderr}


def kill(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the driver and to all processes that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds; fail where the process ends before."""
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert process.poll() is None, f"the run ended too early: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Descendants of a driver with ``name`` in their command line, which for Ray's workers is their title."""
    processes = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(name in part for part in child.cmdline()):
                processes.append(child)
        except psutil.Error:  # it has just ended
            continue
    return processes


def kill_busy_actors(process: subprocess.Popen[str], actor: str) -> int:
    """Send SIGKILL to all actors of a class while one of them is busy; their number."""
    # While a method runs, its name follows that of the class in the title.
    wait_until(lambda: bool(workers(process, f"{actor})).")), process)
    victims = workers(process, actor)
    for victim in victims:
        victim.kill()
    return len(victims)


@dataclass(frozen=True)
class OutputDifference:
    """How an output differs from an undisturbed run's.

    Args:
        lost: number of images in neither predictions nor quarantine.
        doubled: number of rows beyond the first one of their image.
        different: number of predictions that are not the undisturbed run's.
    """

    lost: int
    doubled: int
    different: int


NO_DIFFERENCE = OutputDifference(lost=0, doubled=0, different=0)


def compare_output(
    command: ScoreCommand, images: set[str], reference: Mapping[str, dict[str, Any]]
) -> OutputDifference:
    """Compare the output of a command with the images that it read and with an undisturbed run.

    Args:
        command: the command, after its last run.
        images: every ``image_id`` in its shards.
        reference: prediction rows of the undisturbed run, by ``image_id``.
    """
    predicted = command.rows("predictions")
    count = Counter(row["image_id"] for row in [*predicted, *command.rows("quarantine")])
    different = sum(not _same(row, reference[row["image_id"]]) for row in predicted if row["image_id"] in reference)
    doubled = sum(times - 1 for times in count.values())
    return OutputDifference(lost=len(images - set(count)), doubled=doubled, different=different)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    close = np.allclose(one["probabilities"], other["probabilities"], atol=1e-4)
    return close and one["label"] == other["label"] and one["decision"] == other["decision"]


# Status, headers and content.
Answer = tuple[int, Mapping[str, str], bytes]


class _Handler(BaseHTTPRequestHandler):
    """Forwards requests, except those that the server chooses to fail."""

    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def _forward(self) -> None:
        body = self._body()
        fault = self.server.choose_fault()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)  # close() alone would wait for the open files
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(1.0)
        if fault in _STATUS:
            answer = f"<?xml version='1.0'?><Error><Code>{fault}</Code><Message>fault</Message></Error>".encode()
            headers = {"Content-Type": "application/xml", "Content-Length": str(len(answer))}
            self._answer(_STATUS[fault], headers, answer)
            return
        self._answer(*self.server.answer(self, lambda: self._served(body)))

    def _served(self, body: bytes) -> Answer:
        """The answer of the S3 server."""
        inner = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        inner.request(self.command, self.path, body, sent)
        response = inner.getresponse()
        content = response.read()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        headers["Content-Length"] = response.getheader("Content-Length") or str(len(content))  # HEAD has no content
        inner.close()
        return response.status, headers, content

    def _body(self) -> bytes:
        """The request's body: of a stated length, or in chunks, of which the last is empty."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            with self.server.lock:
                self.server.bytes_sent += len(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: the failures are intended."""

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815  http.server's names


_STATUS = {"SlowDown": 503, "InternalError": 500, "ExpiredToken": 400}
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}


class Proxy(ThreadingHTTPServer):
    """A proxy before an S3 server that fails a share of requests: 503 SlowDown, 500, a reset, or a second late.

    ``faults`` counts the failures by kind, and ``bytes_sent`` the bytes of the answers' bodies. While ``expired`` is
    set, every request is refused with ``ExpiredToken``. ``answer`` answers a request; it is given the request and a
    function that returns the answer of the S3 server.

    Args:
        target: port of the S3 server on this machine.
        share: share of requests that fail.
        seed: seed of the choice.
    """

    daemon_threads = True

    def __init__(self, target: int, share: float, seed: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.share = target, share
        self.dice, self.lock = random.Random(seed), threading.Lock()
        self.expired = False
        self.answer: Callable[[BaseHTTPRequestHandler, Callable[[], Answer]], Answer] = lambda request, serve: serve()
        self.faults: Counter[str] = Counter()
        self.bytes_sent = 0

    def choose_fault(self) -> str:
        """The fault of the next request; empty for none."""
        with self.lock:
            if self.expired:
                return "ExpiredToken"
            if self.dice.random() >= self.share:
                return ""
            fault = self.dice.choice(["SlowDown", "InternalError", "reset", "slow"])
            self.faults[fault] += 1
            return fault


@contextmanager
def failing_s3(url: str, share: float, seed: int) -> Iterator[tuple[str, Proxy]]:
    """Run a proxy before the S3 server of a URL; yields the proxy's URL and the proxy."""
    proxy = Proxy(int(url.rsplit(":", 1)[1]), share, seed)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)
