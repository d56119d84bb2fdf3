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
from urllib.parse import unquote, urlsplit

LICENCE = "mit"
REVISION = hashlib.sha1(b"first").hexdigest()
# Files of this size and more are stored apart, and the hub states their SHA-256.
LARGE = 1 << 10
_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Hub:
    """A hub.

    Args:
        root: a folder OWNER/NAME for each repository.
        url: address of the server.
        gated: repositories that need the token ``hf_granted``.
        unlicensed: repositories whose card states no licence.
        cut: most bytes of an answer, after which the connection ends; None for whole answers.
        stated: SHA-256 that is stated in place of the true one, by name of file.
        bytes: bytes that were sent, by name of file.
    """

    root: Path
    url: str = ""
    gated: set[str] = field(default_factory=set)
    unlicensed: set[str] = field(default_factory=set)
    cut: int | None = None
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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if (call := _API.fullmatch(path)) is not None:
            if self._may_read(call["repository"]):
                content = json.dumps(self._model(call["repository"])).encode()
                self._answer(200, {"Content-Type": "application/json"}, content)
        elif (call := _FILE.fullmatch(path)) is not None:
            if self._may_read(call["repository"]):
                self._file(call["repository"], call["file"])
        else:
            self._refuse(404, "EntryNotFound")

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
        for path in sorted((self.hub.root / repository).rglob("*")):
            if not path.is_file():
                continue
            name, size = str(path.relative_to(self.hub.root / repository)), path.stat().st_size
            entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": _blob(path)}
            if size >= LARGE:
                sha256 = self.hub.stated.get(name) or hashlib.sha256(path.read_bytes()).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
            siblings.append(entry)
        card = {} if repository in self.hub.unlicensed else {"license": LICENCE}
        return {"id": repository, "sha": REVISION, "siblings": siblings, "cardData": card}

    def _file(self, repository: str, name: str) -> None:
        path = self.hub.root / repository / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        content = path.read_bytes()
        large = len(content) >= LARGE
        etag = self.hub.stated.get(name) or hashlib.sha256(content).hexdigest() if large else _blob(path)
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
        sent = content[: self.hub.cut] if name else content
        self.hub.bytes[name] += len(sent)
        self.wfile.write(sent)
        self.close_connection = len(sent) < len(content)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}")


def _blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
