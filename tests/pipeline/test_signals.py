import os
import signal
import time
import weakref

import pytest

from medfocus.pipeline.signals import stopped_by_signals


class Thing:
    pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_a_call_that_cannot_raise_is_not_lost(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    thing = Thing()
    kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))  # what it raises Python only reports
    with pytest.raises(KeyboardInterrupt), stopped_by_signals():
        del thing
        time.sleep(30)
    assert kept() is None and capsys.readouterr().err == ""


def test_later_signals_do_not_disturb_what_ends(capsys: pytest.CaptureFixture[str]) -> None:
    ended = []
    with pytest.raises(KeyboardInterrupt), stopped_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            ended.append(True)
    assert ended == [True] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
