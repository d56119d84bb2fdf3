"""A server that speaks the HTTP API of the Hugging Face hub, for its real client: models in folders of this machine."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

LICENCE = "mit"
REVISION = hashlib.sha1(b"first").hexdigest()
# Files of this size and more are stored apart, and the hub states their SHA-256.
LARGE = 1 << 10
_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/tree/[^/]+")
_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Hub:
    """A hub.

    Args:
        root: a folder OWNER/NAME for each repository.
        url: address of the server.
        gated: repositories that need the token ``hf_granted``.
        unlicensed: repositories whose card states no licence.
        cut: most bytes of a file in one answer, after which the connection ends; None for whole answers.
        held: names of files of which half is sent, and then nothing until the client leaves.
        stated: SHA-256 that is stated in place of the true one, by name of file.
        bytes: bytes that were sent, by name of file.
    """

    root: Path
    url: str = ""
    gated: set[str] = field(default_factory=set)
    unlicensed: set[str] = field(default_factory=set)
    cut: int | None = None
    held: set[str] = field(default_factory=set)
    stated: dict[str, str] = field(default_factory=dict)
    bytes: Counter[str] = field(default_factory=Counter)

    def add(self, repository: str, **files: bytes) -> Path:
        """Add a repository; a name of a file has ``__`` for a dot. Returns its folder."""
        folder = self.root / repository
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        return folder


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Run a hub whose repositories are below a folder."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client of this process, which has read its environment, and of its children use a hub without a token."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    values = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache / "hub")}
    for name, value in {**values, "HF_TOKEN_PATH": str(cache / "token")}.items():
        monkeypatch.setattr(constants, name, value)
    for name, value in {"HF_ENDPOINT": url, "HF_HOME": str(cache)}.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if (call := _FILE.fullmatch(path)) is not None:
            if self._may_read(call["repository"]):
                self._file(call["repository"], call["file"])
        elif (call := _API.fullmatch(path)) is not None:
            if self._may_read(call["repository"]):
                self._send(self._model(call["repository"]))
        elif (call := _TREE.fullmatch(path)) is not None:
            if self._may_read(call["repository"]):
                self._send(self._tree(call["repository"]))
        else:
            self._refuse(404, "EntryNotFound")

    def _send(self, content: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _may_read(self, repository: str) -> bool:
        if not (self.hub.root / repository).is_dir():
            self._refuse(401, "RepoNotFound")  # as the hub does for who is not signed in
            return False
        if repository in self.hub.gated and self.headers.get("Authorization") != "Bearer hf_granted":
            self._refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            return False
        return True

    def _model(self, repository: str) -> dict[str, object]:
        siblings = []
        for entry in self._tree(repository):
            lfs = {"lfs": {**entry["lfs"], "sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {}
            siblings.append({"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"], **lfs})
        card = {} if repository in self.hub.unlicensed else {"license": LICENCE}
        return {"id": repository, "sha": REVISION, "siblings": siblings, "cardData": card}

    def _tree(self, repository: str) -> list[dict[str, Any]]:
        entries = []
        for path in sorted((self.hub.root / repository).rglob("*")):
            if not path.is_file():
                continue
            name, size = str(path.relative_to(self.hub.root / repository)), path.stat().st_size
            entry = {"type": "file", "path": name, "size": size, "oid": _blob(path)}
            if size >= LARGE:
                entry["lfs"] = {"oid": self._sha256(path, name), "size": size, "pointerSize": 130}
            entries.append(entry)
        return entries

    def _sha256(self, path: Path, name: str) -> str:
        return self.hub.stated.get(name) or hashlib.sha256(path.read_bytes()).hexdigest()

    def _file(self, repository: str, name: str) -> None:
        path = self.hub.root / repository / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = path.read_bytes()
        large = len(content) >= LARGE
        etag = self._sha256(path, name) if large else _blob(path)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))} if large else {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, headers, content, name)
            return
        start, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        self._answer(206, headers, content[start : last + 1], name)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        held = name in self.hub.held
        sent = content[: len(content) // 2 if held else self.hub.cut] if name else content
        self.hub.bytes[name] += len(sent)
        self.wfile.write(sent)
        if held:
            self.rfile.read(1)
        self.close_connection = len(sent) < len(content)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}")


def _blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
