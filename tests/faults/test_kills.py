"""Processes that die: the driver, an actor, a node, one that takes too much memory. Real processes, real signals."""

import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.faults.conftest import ROWS_PER_SHARD
from tests.faults.injection import ALL_WELL, Scoring, account, ended, kill, kill_at_work, wait_until, workers

pytestmark = pytest.mark.faults


def test_the_driver_is_killed_ten_times(archive: SimpleNamespace, undisturbed: dict, scoring: Scoring) -> None:
    """At moments from the first import on; the eleventh run is interrupted by hand."""
    dice = random.Random(5)
    for _ in range(10):
        process = scoring.start()
        deadline = time.monotonic() + dice.uniform(1, 11)
        while process.poll() is None and scoring.parts() < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        kill(process)
    process, before = scoring.start(), scoring.parts()
    wait_until(lambda: scoring.parts() > before, process)
    process.send_signal(signal.SIGINT)
    assert "the same call goes on from here" in ended(process, code=1)["stderr"]
    result = scoring.finish()
    assert result["rows"] == len(archive.images) and result["resumed"] >= ROWS_PER_SHARD
    assert account(scoring, archive.images, undisturbed) == ALL_WELL


def test_actors_are_killed(archive: SimpleNamespace, undisturbed: dict, scoring: Scoring) -> None:
    process = scoring.start()
    assert kill_at_work(process, "ModelActor")
    assert ended(process)["scored"] == len(archive.images)
    assert account(scoring, archive.images, undisturbed) == ALL_WELL


def test_a_node_is_killed(archive: SimpleNamespace, undisturbed: dict, scoring: Scoring) -> None:
    """A cluster of three nodes on this machine, one of which goes while it works."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        cluster.wait_for_nodes()
        scoring.settings += [f"cluster.address={cluster.address}", "storage.shared=true"]
        process = scoring.start()
        wait_until(lambda: scoring.parts() >= 1, process)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert ended(process)["scored"] == len(archive.images)
    finally:
        cluster.shutdown()
    assert account(scoring, archive.images, undisturbed) == ALL_WELL


@pytest.mark.long
def test_a_worker_is_killed_for_memory(archive: SimpleNamespace, undisturbed: dict, scoring: Scoring) -> None:
    """Ray's own memory monitor kills a worker when another process takes what is left of the memory it may use."""
    memory, taken = psutil.virtual_memory(), 7 << 30
    if memory.available < 2 * taken:
        pytest.skip("too little memory is free to take some of it away")
    most = (memory.total - memory.available + taken) / memory.total
    scoring.environment |= {"RAY_memory_usage_threshold": f"{most:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    process = scoring.start()
    wait_until(lambda: scoring.parts() >= 1, process)
    before = {worker.pid for worker in workers(process, "ray::")}
    hog = subprocess.Popen([sys.executable, "-c", f"import time; x = b'x' * {taken}; time.sleep(999)"])
    try:
        wait_until(lambda: not before <= {worker.pid for worker in workers(process, "ray::")}, process)
    finally:
        hog.kill()
        hog.wait()
    assert ended(process)["scored"] == len(archive.images)
    assert account(scoring, archive.images, undisturbed) == ALL_WELL


def test_a_row_that_kills_its_worker_costs_itself(
    archive: SimpleNamespace, undisturbed: dict, scoring: Scoring
) -> None:
    victim = "000009.png"
    pixels = (archive.root / "images" / victim).read_bytes()[-40:-24]  # compressed: no other image has the same
    scoring.environment["FAULT_KILL_ON"] = pixels.hex()
    result = scoring.finish()
    assert (result["scored"], result["quarantined"]) == (len(archive.images) - 1, 1)
    assert [(row["image_id"], row["stage"], row["error"]) for row in scoring.rows("quarantine")] == [
        (victim, "decode", "WorkerDied")
    ]
    assert account(scoring, archive.images, undisturbed) == ALL_WELL
