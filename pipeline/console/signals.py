"""Handlers of the signals that schedulers send: a command stops in order, as it does at Ctrl-C."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Schedulers send the first; a terminal that is closed sends the second.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Seconds until a signal is sent again that came during a call that cannot raise.
_PAUSE = 0.1


class _Stop:
    """Raises KeyboardInterrupt at the first signal and ignores later ones, so that the command can stop in order."""

    def __init__(self) -> None:
        self.begun, self.number = False, signal.SIGINT
        self.report = sys.unraisablehook

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, as ``signal.signal`` calls it."""
        self.number = signal.Signals(number)
        if self.begun:
            return
        if frame is not None and frame.f_globals.get("__name__") == logging.__name__:
            # logging releases its lock here, for instance after each fork. An error would keep it locked for ever.
            self._send_again()
            return
        self.begun = True
        raise KeyboardInterrupt(self.number)  # SIGINT, which a person sends, comes without a number

    def handle_unraisable(self, unraisable: Any) -> None:
        """Send the signal again that came during a call that cannot raise, such as one that frees an object."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self.report(unraisable)
            return
        self.begun = False
        self._send_again()

    def _send_again(self) -> None:
        """Send the signal again in a moment: at once, it would come during the same call."""
        again = threading.Timer(_PAUSE, os.kill, (os.getpid(), self.number))
        again.daemon = True
        again.start()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, where the process does not handle them yet."""
    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield
        return
    stop = _Stop()
    numbers = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop.handle)
    sys.unraisablehook = stop.handle_unraisable
    try:
        yield
    finally:
        sys.unraisablehook = stop.report
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
