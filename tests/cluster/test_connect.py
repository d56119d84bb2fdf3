import json
import os
import subprocess
import sys
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from medfocus.cluster.environment import OWN_CLUSTER

# Four workers are idle for four seconds, on one CPU, for which Ray keeps one.
IDLE = """
import os, time
from medfocus.cluster.connect import connected
with connected(None, 1):
    import ray
    def work():
        time.sleep(3)
        return os.getpid()
    def workers():
        return set(ray.get([ray.remote(work).options(num_cpus=0.2).remote() for _ in range(4)]))
    first = workers()
    time.sleep(4)
    print(first == workers())
"""
CONNECT = """
from medfocus.cluster.connect import connected
with connected(None, None) as resources:
    print("CPUs", resources["CPU"])
"""
# The state of Ray's loggers and of Ray Data's context before, within and after a connection, which may end by an error.
STATE = """
import contextlib, json, logging, sys
import ray
from medfocus.cluster.connect import connected
from ray.data import DataContext

names = ("ray", "ray.data", "ray.train")
def state():
    return {name: logging.getLogger(name).level for name in names} | {"context": repr(DataContext.get_current())}

logging.basicConfig()
logging.getLogger("medfocus").setLevel(sys.argv[1])
if sys.argv[2] == "caller":
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
DataContext.get_current().enable_progress_bars = True
DataContext.get_current().target_max_block_size = 12345
states = [state()]
with contextlib.suppress(KeyError):
    with connected(None, 1):
        states.append(state())
        context = DataContext.get_current()
        values = (context.enable_progress_bars, context.target_max_block_size, context.raise_original_map_exception)
        raise KeyError
states.append(state())
print(json.dumps({"states": states, "values": values, "initialized": ray.is_initialized()}))
"""
SPEAK = """
import logging, sys
from medfocus.cluster.connect import connected
logging.basicConfig()
logging.getLogger("medfocus").setLevel(sys.argv[1])
with connected(None, 1):
    import ray, time
    def speak(row):
        print("said by a worker")
        return row
    ray.data.range(2, override_num_blocks=1).map(speak).materialize()
    time.sleep(2)
"""
# A stream that the caller leaves early, and one that fails: their executions end when the connection does, or later.
LEAVE = """
from medfocus.cluster.connect import connected
error = None
try:
    with connected(None, 1):
        import ray
        for row in ray.data.range(100, override_num_blocks=100).map(lambda row: row).iter_rows():
            break
        ray.data.range(1).map(lambda row: 1 / 0).materialize()
except Exception as caught:
    error = caught
print(type(error.cause if hasattr(error, "cause") else error).__name__)
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", code, *arguments]
    return subprocess.run(call, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def cpus(**environment: str) -> str:
    """What a command that names no cluster gets."""
    ended = python(CONNECT, **environment)
    return ended.stdout.strip() or ended.stderr


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_another_cluster_on_the_machine_is_joined_only_if_it_is_named() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 99})  # which Ray notes as the machine's latest
    try:
        assert cpus() == f"CPUs {os.cpu_count():.1f}"
        assert cpus(RAY_ADDRESS=cluster.address) == "CPUs 99.0"
    finally:
        cluster.shutdown()


def test_a_worker_stays_while_others_work() -> None:
    assert python(IDLE).stdout.strip() == "True"
    assert python(IDLE, RAY_idle_worker_killing_time_threshold_ms="1000").stdout.strip() == "False"  # Ray's default


def test_only_a_ray_started_here_does_not_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's dashboard shows what drivers that join it report of their tasks."""
    for name in OWN_CLUSTER:
        monkeypatch.delenv(name, raising=False)
    show = (
        f"{CONNECT}\nimport json, os; print(json.dumps({{name: os.environ.get(name) for name in {list(OWN_CLUSTER)}}}))"
    )

    def environment(**given: str) -> dict[str, str | None]:
        return json.loads(python(show, **given).stdout.splitlines()[-1])

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        assert environment(RAY_ADDRESS=cluster.address) == dict.fromkeys(OWN_CLUSTER)
    finally:
        cluster.shutdown()
    assert environment() == OWN_CLUSTER


def states(level: str, connection: str) -> dict[str, Any]:
    ended = python(STATE, level, connection)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("connection", ["own", "caller"])
def test_loggers_and_data_context_are_restored(connection: str) -> None:
    result = states("INFO", connection)
    before, inside, after = result["states"]
    assert after == before and before["context"] != inside["context"]
    assert {inside[name] for name in ("ray", "ray.data", "ray.train")} == {50}  # CRITICAL
    assert result["values"] == [False, None, True]
    assert result["initialized"] == (connection == "caller")


@pytest.mark.parametrize("connection", ["own", "caller"])
def test_at_debug_ray_keeps_its_levels_and_progress_bars(connection: str) -> None:
    result = states("DEBUG", connection)
    before, inside, after = result["states"]
    assert after == before
    assert inside["ray"] == 20 and inside["ray.data"] == before["ray.data"] < 50
    assert result["values"] == [True, None, True]


def test_ray_speaks_at_debug_only() -> None:
    quiet, verbose = python(SPEAK, "INFO"), python(SPEAK, "DEBUG")
    assert quiet.returncode == verbose.returncode == 0
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert "said by a worker" in verbose.stdout
    assert "Started a local Ray instance" in verbose.stderr and "Execution plan of Dataset" in verbose.stderr


def test_ray_is_quiet_when_a_stream_is_left_or_fails() -> None:
    ended = python(LEAVE)
    assert "ZeroDivisionError" in ended.stdout and ended.stderr == ""
