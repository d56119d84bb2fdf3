import os
import subprocess
import sys

import pytest
from ray.cluster_utils import Cluster

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
CONNECT = (
    "from medfocus.cluster.connect import connected\nwith connected(None, None) as held: print('CPUs', held['CPU'])"
)


def cpus(**environment: str) -> str:
    """What a command that names no cluster gets."""
    ended = subprocess.run(
        [sys.executable, "-c", CONNECT], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return ended.stdout.strip() or ended.stderr


def test_another_cluster_on_the_machine_is_joined_only_if_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 99})  # which Ray notes as the machine's latest
    try:
        assert cpus() == f"CPUs {os.cpu_count():.1f}"
        assert cpus(RAY_ADDRESS=cluster.address) == "CPUs 99.0"
    finally:
        cluster.shutdown()


def test_a_worker_stays_while_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def stays(**environment: str) -> str:
        given = {**os.environ, **environment}
        return subprocess.run([sys.executable, "-c", IDLE], env=given, capture_output=True, text=True).stdout.strip()

    assert stays() == "True"
    assert stays(RAY_idle_worker_killing_time_threshold_ms="1000") == "False"  # as Ray has it by itself


def test_only_a_ray_started_here_is_told_not_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's dashboard shows what drivers that join it report of their tasks."""
    for name in ("RAY_ADDRESS", *(told := ("RAY_task_events_report_interval_ms", "RAY_enable_metrics_collection"))):
        monkeypatch.delenv(name, raising=False)
    tell = f"{CONNECT}\nimport os; print([os.environ.get(name) for name in {told}])"

    def environment(**given: str) -> str:
        call = [sys.executable, "-c", tell]
        return subprocess.run(call, env={**os.environ, **given}, capture_output=True, text=True).stdout.splitlines()[-1]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        assert environment(RAY_ADDRESS=cluster.address) == "[None, None]"
    finally:
        cluster.shutdown()
    assert environment() == "['0', '0']"
