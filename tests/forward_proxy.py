"""An HTTP proxy for the tests: ``python -m tests.forward_proxy PORT LOG [USER:PASSWORD]``.

It forwards each request, and appends a line with its method and host to LOG. With USER:PASSWORD it refuses all other
users.
"""

import base64
import http.client
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_HOP_BY_HOP = {"proxy-authorization", "proxy-connection", "connection", "keep-alive", "transfer-encoding"}


class Handler(BaseHTTPRequestHandler):
    """Forwards requests of allowed users."""

    protocol_version = "HTTP/1.1"
    log: Path
    authorization: str | None = None

    def forward(self) -> None:
        """Answer with what the target answers."""
        body = self._body()
        if self.authorization and self.headers.get("Proxy-Authorization") != self.authorization:
            self._answer(407, {"Proxy-Authenticate": "Basic"}, b"")
            return
        target = urlsplit(self.path)
        if not target.netloc:  # a check that the proxy is up
            self._answer(204, {}, b"")
            return
        with self.log.open("a") as file:
            file.write(f"{self.command} {target.netloc}\n")
        connection = http.client.HTTPConnection(target.netloc, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        connection.request(self.command, self.path.partition(target.netloc)[2] or "/", body, headers)
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815  names that http.server calls

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), str(len(body)))
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing to stderr."""


if __name__ == "__main__":
    Handler.log = Path(sys.argv[2])
    if len(sys.argv) > 3:
        Handler.authorization = "Basic " + base64.b64encode(sys.argv[3].encode()).decode()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
