"""What breaks a run, and what must be true after it: shared by the tests of faults and their benchmark."""

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
from collections.abc import Callable, Iterator, Mapping
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
# Longest time that a run may take before a test gives it up.
_PATIENCE = 300.0


@dataclass
class Scoring:
    """One archive, one model, one output: the same call, however often it is broken off."""

    shards: str
    out: str
    model: str
    settings: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The command in a process group of its own, which takes its Ray with it."""
        settings = [part for setting in self.settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "medfocus", "score", self.shards, self.out, "--model", self.model]
        path = os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [*command, *settings, *more, "--json"],
            env={**os.environ, "PYTHONPATH": path, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, *more: str, code: int = 0) -> dict[str, Any]:
        """Run the command to its end; its result, and as ``stderr`` what it told."""
        return ended(self.start(*more), code)

    def parts(self) -> int:
        """Shards whose predictions are there."""
        return len((locate(self.out, StorageSection()) / "predictions").files(".parquet"))

    def rows(self, kind: str) -> list[dict[str, Any]]:
        place = locate(self.out, StorageSection()) / kind
        tables = [pq.read_table((place / name).path, filesystem=place.filesystem) for name in place.files(".parquet")]
        return [row for table in tables for row in table.to_pylist()]


def ended(process: subprocess.Popen[str], code: int = 0) -> dict[str, Any]:
    """The result of a command that must end with an exit code."""
    out, told = process.communicate(timeout=_PATIENCE)
    assert process.returncode == code, f"exit {process.returncode}: {told[-2000:]}"
    result = json.loads(out.splitlines()[-1]) if code in (0, 3) else {}
    return {**result, "stderr": told}


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the driver and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(moment: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not moment():
        assert process.poll() is None, f"the run ended too early: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Ray's worker processes below a driver whose title holds a name."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(name in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has just ended
            continue
    return found


def kill_at_work(process: subprocess.Popen[str], actor: str) -> int:
    """SIGKILL for the actors of a class, at a moment when one of them works; how many there were."""
    wait_until(lambda: bool(workers(process, f"{actor})).")), process)  # the method is in the title while it runs
    victims = workers(process, actor)
    for victim in victims:
        victim.kill()
    return len(victims)


@dataclass(frozen=True)
class Account:
    """Images that an output has not, or has more than once; and predictions that differ from an undisturbed run's."""

    lost: int
    doubled: int
    different: int


ALL_WELL = Account(lost=0, doubled=0, different=0)


def account(scoring: Scoring, images: set[str], reference: Mapping[str, dict[str, Any]]) -> Account:
    """Hold an output against the images that went in and the predictions of an undisturbed run."""
    predicted = scoring.rows("predictions")
    count = Counter(row["image_id"] for row in [*predicted, *scoring.rows("quarantine")])
    different = sum(not _same(row, reference[row["image_id"]]) for row in predicted if row["image_id"] in reference)
    doubled = sum(times - 1 for times in count.values())
    return Account(lost=len(images - set(count)), doubled=doubled, different=different)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    close = np.allclose(one["probabilities"], other["probabilities"], atol=1e-4)
    return close and one["label"] == other["label"] and one["decision"] == other["decision"]


class _Handler(BaseHTTPRequestHandler):
    """Passes requests on, but for those that the server's dice let fail."""

    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.server.roll()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)  # closing alone waits for the files on it
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(1.0)
        if fault in _STATUS:
            answer = f"<?xml version='1.0'?><Error><Code>{fault}</Code><Message>fault</Message></Error>".encode()
            headers = {"Content-Type": "application/xml", "Content-Length": str(len(answer))}
            self._answer(_STATUS[fault], headers, answer)
            return
        inner = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        inner.request(self.command, self.path, body, sent)
        response = inner.getresponse()
        content = response.read()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        headers["Content-Length"] = response.getheader("Content-Length") or str(len(content))  # HEAD has no content
        self._answer(response.status, headers, content)
        inner.close()

    def _body(self) -> bytes:
        """What the request carries: of a stated length, or in chunks that end with an empty one."""
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
        """Nothing: what fails here is meant to."""

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815  http.server's names


_STATUS = {"SlowDown": 503, "InternalError": 500, "ExpiredToken": 400}
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}


class Proxy(ThreadingHTTPServer):
    """A proxy before an S3 server that fails a share of requests: 503 SlowDown, 500, a reset, or a second late.

    ``bytes_sent`` counts the content of its answers. With ``expired`` set, credentials are refused as those that have
    expired, whatever is asked.
    """

    daemon_threads = True

    def __init__(self, target: int, share: float, seed: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.share = target, share
        self.dice, self.lock = random.Random(seed), threading.Lock()
        self.expired = False
        self.faults: Counter[str] = Counter()
        self.bytes_sent = 0

    def roll(self) -> str:
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
    """A proxy that runs before the S3 server of a URL; yields its own URL and itself."""
    proxy = Proxy(int(url.rsplit(":", 1)[1]), share, seed)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)
