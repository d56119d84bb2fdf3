"""A cluster that is a head without CPUs until work asks for nodes, with a real autoscaler."""

import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.autoscaling import AutoscalingCluster, autoscaling_cluster
from tests.faults.injection import HOOKS, NO_DIFFERENCE, ScoreCommand, compare_output, wait_for_result, wait_until

pytestmark = pytest.mark.faults

# The GPU is a number that Ray counts. One node more than the run asks for may come, and must not.
GPU_NODE = {"resources": {"CPU": 2, "GPU": 1, "object_store_memory": 200_000_000}, "min_workers": 0, "max_workers": 3}
GPUS = 2


@pytest.fixture
def scaled(command: ScoreCommand, tmp_path: Path) -> Iterator[tuple[AutoscalingCluster, ScoreCommand, Path]]:
    """A cluster from nothing, a command that runs on it, and a file that pauses the models while it exists."""
    pause = tmp_path / "pause"
    path = os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")])
    environment = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "FAULT_PAUSE": str(pause), "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(prefix="mf") as name:
        with autoscaling_cluster(Path(name), {"gpu": GPU_NODE}, 0.1, environment) as cluster:
            settings = [f"cluster.address={cluster.address}", "cluster.device=cpu", "storage.shared=true"]
            yield cluster, replace(command, settings=command.settings + settings, environment=environment), pause


class Watch:
    """Follows the nodes and actors of a cluster while a run works.

    Args:
        cluster: the cluster.

    Attributes:
        most_nodes: most nodes at a time.
        longest_shortage: longest time in seconds with fewer actors than nodes, each of which has one GPU.
    """

    def __init__(self, cluster: AutoscalingCluster):
        self.cluster, self.most_nodes, self.longest_shortage = cluster, 0, 0.0
        self._enough = time.monotonic()

    def look(self) -> bool:
        """Look at the cluster once; returns False, so that it can stand before a condition."""
        nodes, now = len(self.cluster.raylets()), time.monotonic()
        if len(self.cluster.actors()) >= nodes:
            self._enough = now
        self.longest_shortage = max(self.longest_shortage, now - self._enough)
        self.most_nodes = max(self.most_nodes, nodes)
        return False

    def until(self, condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        """Wait for a condition while the run works."""
        wait_until(lambda: self.look() or condition(), process)


def test_nodes_come_when_a_run_asks_are_replaced_and_leave(
    archive: SimpleNamespace,
    undisturbed: dict,
    scaled: tuple[AutoscalingCluster, ScoreCommand, Path],
    record_property: Callable[[str, object], None],
) -> None:
    cluster, command, pause = scaled
    assert not cluster.raylets()
    process, watch = command.start("--set", f"cluster.gpus={GPUS}"), Watch(cluster)
    watch.until(lambda: command.parts() >= 1, process)
    pause.touch()
    watch.until(lambda: len(cluster.raylets()) == GPUS, process)
    lost = kill_node(cluster)
    watch.until(lambda: len(cluster.raylets()) == GPUS, process)
    assert lost not in [raylet.pid for raylet in cluster.raylets()]
    watch.until(lambda: len(cluster.actors()) >= GPUS, process)
    pause.unlink()
    watch.until(lambda: process.poll() is not None or command.parts() == 8, process)
    result = wait_for_result(process)
    record_property("seconds with fewer actors than GPUs", watch.longest_shortage)
    assert result["scored"] == len(archive.images)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE
    assert watch.most_nodes == GPUS  # a node more would cost money
    assert "models on cpu in actors: 4 of 0.25 CPUs and 0.5 GPUs" in result["stderr"]
    assert "1 left" in result["stderr"]
    deadline = time.monotonic() + 120
    while cluster.raylets():
        assert time.monotonic() < deadline, "the nodes did not leave"
        time.sleep(1)

    # The head alone again: a run that asks for nothing, or for what no node offers, is refused with the mend.
    refusal = command.finish("--overwrite", code=2)["stderr"].strip().splitlines()[-1]
    assert "nothing to run the models on" in refusal and "set cluster.gpus" in refusal


def kill_node(cluster: AutoscalingCluster) -> int:
    """Kill the oldest node with all of its processes, as a spot node goes; returns its process id."""
    node = cluster.raylets()[0]
    for process in [node, *node.children(recursive=True)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    node.wait()
    return node.pid
