"""A connection that breaks: a TCP proxy in front of a server."""

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Proxy:
    """Passes connections on to the server of a URL until it is told to break them.

    Args:
        url: of the server, with a port.
    """

    def __init__(self, url: str):
        self.target = urlsplit(url)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets: list[socket.socket] = []
        self.prefix, self.swallowed = b"", 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def break_connections(self) -> None:
        """Close all connections; new ones are accepted."""
        while self.sockets:
            end = self.sockets.pop()
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """Close all connections and accept none any more."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.break_connections()

    def swallow_answer(self, request: str) -> None:
        """Close the next connection whose request begins so, when the server has answered it."""
        self.prefix = request.encode()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                server = socket.create_connection((self.target.hostname, self.target.port))
                self.sockets += [client, server]
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            first = client.recv(1 << 16)
            swallow = bool(self.prefix) and first.startswith(self.prefix)
            server.sendall(first)
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
            if swallow:
                self.prefix = b""
                server.recv(1)
                self.swallowed += 1
            else:
                self._pass(server, client)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                target.sendall(content)
