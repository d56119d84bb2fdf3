"""Signals that end a command in order, as Ctrl-C does."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# What schedulers send, and a terminal that is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Seconds until a signal that came in a call that cannot raise is sent again.
_PAUSE = 0.1


class _Stop:
    """Raises KeyboardInterrupt at the first signal; those after it do not disturb what then ends in order."""

    def __init__(self) -> None:
        self.begun, self.number = False, signal.SIGINT
        self.report = sys.unraisablehook

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        if not self.begun:
            self.begun = True
            raise KeyboardInterrupt

    def unraised(self, lost: Any) -> None:
        """Send the signal again where Python was in a call that cannot raise, as one that frees an object."""
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            self.report(lost)
            return
        self.begun = False
        again = threading.Timer(_PAUSE, os.kill, (os.getpid(), self.number))  # at once it would come in here
        again.daemon = True
        again.start()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, unless the caller has another use for them."""
    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield
        return
    stop = _Stop()
    numbers = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop.handle)
    sys.unraisablehook = stop.unraised
    try:
        yield
    finally:
        sys.unraisablehook = stop.report
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
