"""Processes that are killed: the driver, actors, a node, and a worker when memory is short."""

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
from tests.faults.injection import (
    NO_DIFFERENCE,
    ScoreCommand,
    compare_output,
    kill,
    kill_busy_actors,
    wait_for_result,
    wait_until,
    workers,
)

pytestmark = pytest.mark.faults


def test_the_driver_is_killed_ten_times(archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand) -> None:
    """At random moments from the first import on. The eleventh run gets SIGINT."""
    dice = random.Random(5)
    for _ in range(10):
        process = command.start()
        deadline = time.monotonic() + dice.uniform(1, 11)
        while process.poll() is None and command.parts() < 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        kill(process)
    process, before = command.start(), command.parts()
    wait_until(lambda: command.parts() > before, process)
    process.send_signal(signal.SIGINT)
    assert "the same call goes on from here" in wait_for_result(process, code=1)["stderr"]
    result = command.finish()
    assert result["rows"] == len(archive.images) and result["resumed"] >= ROWS_PER_SHARD
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE


def test_actors_are_killed(archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand) -> None:
    process = command.start()
    assert kill_busy_actors(process, "ModelActor")
    assert wait_for_result(process)["scored"] == len(archive.images)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE


def test_a_node_is_killed(archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand) -> None:
    """On a cluster of three local nodes, one of which is removed while it works."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        cluster.wait_for_nodes()
        command.settings += [f"cluster.address={cluster.address}", "storage.shared=true"]
        process = command.start()
        wait_until(lambda: command.parts() >= 1, process)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert wait_for_result(process)["scored"] == len(archive.images)
    finally:
        cluster.shutdown()
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE


@pytest.mark.long
def test_a_worker_is_killed_for_memory(archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand) -> None:
    """Ray's memory monitor kills a worker when another process takes the rest of the allowed memory."""
    memory, taken = psutil.virtual_memory(), 7 << 30
    if memory.available < 2 * taken:
        pytest.skip("too little free memory to fill some of it")
    most = (memory.total - memory.available + taken) / memory.total
    command.environment |= {"RAY_memory_usage_threshold": f"{most:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    process = command.start()
    wait_until(lambda: command.parts() >= 1, process)
    before = {worker.pid for worker in workers(process, "ray::")}
    hog = subprocess.Popen([sys.executable, "-c", f"import time; x = b'x' * {taken}; time.sleep(999)"])
    try:
        wait_until(lambda: not before <= {worker.pid for worker in workers(process, "ray::")}, process)
    finally:
        hog.kill()
        hog.wait()
    assert wait_for_result(process)["scored"] == len(archive.images)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE


def test_only_the_row_that_kills_its_worker_is_quarantined(
    archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand
) -> None:
    victim = "000009.png"
    pixels = (archive.root / "images" / victim).read_bytes()[-40:-24]  # compressed pixels, which no other image has
    command.environment["FAULT_KILL_ON"] = pixels.hex()
    result = command.finish()
    assert (result["scored"], result["quarantined"]) == (len(archive.images) - 1, 1)
    assert [(row["image_id"], row["stage"], row["error"]) for row in command.rows("quarantine")] == [
        (victim, "decode", "WorkerDied")
    ]
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE
