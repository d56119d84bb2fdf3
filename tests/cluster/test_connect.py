import os
import subprocess
import sys

import pytest
from ray.cluster_utils import Cluster

CONNECT = "from cluster.connect import connected\nwith connected(None, None) as held: print('CPUs', held['CPU'])"


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
