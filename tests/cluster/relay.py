"""Passes connections on, as a tunnel of ssh does: between an address and a socket in the file system."""

import shutil
import socket
import sys
import threading
from contextlib import suppress

Address = tuple[str, int] | str


def relay(listen: Address, target: Address) -> None:
    """Pass every connection to an address on to another, for ever. A text is the path of a socket."""
    with _socket(listen) as server:
        if not isinstance(listen, str):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(listen)
        server.listen()
        while True:
            connection, _ = server.accept()
            other = _socket(target)
            other.connect(target)
            for ends in ((connection, other), (other, connection)):
                threading.Thread(target=_copy, args=ends, daemon=True).start()


def _socket(address: Address) -> socket.socket:
    return socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError), source.makefile("rb", 0) as reader, target.makefile("wb", 0) as writer:
        shutil.copyfileobj(reader, writer)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    host, _, port = sys.argv[2].partition(":")
    relay(sys.argv[1], (host, int(port)))
