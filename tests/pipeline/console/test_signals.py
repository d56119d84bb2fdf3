"""Signals of a process of its own: Ray, which other tests start in theirs, takes SIGTERM for itself."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medfocus.pipeline.console.signals import stopped_by_signals

_REPOSITORY = Path(__file__).parents[3]

# What the callback of a weak reference raises Python only reports.
_IN_A_CALL_THAT_CANNOT_RAISE = """
import os, signal, sys, time, weakref
from medfocus.pipeline.console.signals import stopped_by_signals

class Thing:
    pass

thing = Thing()
kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), int(sys.argv[1])))
try:
    with stopped_by_signals():
        del thing
        time.sleep(30)
except KeyboardInterrupt:
    print("stopped", kept())
"""

# logging takes its lock before each fork and releases it after: an error there keeps it locked.
_WHILE_LOGGING_HOLDS_ITS_LOCK = """
import logging, os, signal, sys, time
from medfocus.pipeline.console.signals import stopped_by_signals

source = "def release(kill, number):\\n    kill(number)\\n    global released\\n    released = True"
exec(compile(source, "logging", "exec"), vars(logging))
try:
    with stopped_by_signals():
        logging.release(signal.raise_signal, int(sys.argv[1]))
        time.sleep(30)
except KeyboardInterrupt:
    print("stopped", logging.released)
"""

_WHILE_IT_ENDS = """
import signal
from medfocus.pipeline.console.signals import stopped_by_signals

try:
    with stopped_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            print("ended")
except KeyboardInterrupt:
    print("stopped", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


def output(script: str, *arguments: str) -> str:
    """What a script prints; it must print nothing on stderr."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.usefixtures("signals_by_default")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_in_a_call_that_cannot_raise_is_not_lost(number: signal.Signals) -> None:
    assert output(_IN_A_CALL_THAT_CANNOT_RAISE, str(number.value)) == "stopped None\n"


@pytest.mark.usefixtures("signals_by_default")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_logging_holds_its_lock_comes_after(number: signal.Signals) -> None:
    assert output(_WHILE_LOGGING_HOLDS_ITS_LOCK, str(number.value)) == "stopped True\n"


def test_later_signals_do_not_disturb_what_ends() -> None:
    assert output(_WHILE_IT_ENDS) == "ended\nstopped True\n"


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
