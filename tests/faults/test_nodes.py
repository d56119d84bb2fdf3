"""Local paths on two nodes, of which one has another disk at the same path."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.faults.injection import NO_DIFFERENCE, ScoreCommand, compare_output

pytestmark = pytest.mark.faults

WAIT = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head node without CPUs, on which no task runs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def hidden(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A folder that is empty on the second node of the cluster, where another one is mounted over it."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a private mount needs root and unshare")
    folder = tmp_path / "hidden"
    folder.mkdir()
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=2"]
    script = f"mount -t tmpfs tmpfs {shlex.quote(str(folder))} && exec {shlex.join([*start, '--block'])}"
    node = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        subprocess.run([sys.executable, "-c", WAIT, cluster.address], check=True, timeout=60)
        yield folder
    finally:
        for process in [*psutil.Process(node.pid).children(recursive=True), node]:
            process.kill()
        node.wait()


def last_line(result: dict) -> str:
    """The message that a command ends with."""
    return result["stderr"].strip().splitlines()[-1]


def test_local_paths_on_two_nodes_are_refused_unless_declared_shared(
    archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand, cluster: Cluster
) -> None:
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    command.settings.append(f"cluster.address={cluster.address}")
    message = last_line(command.finish(code=2))
    assert "a local path, and the cluster has 2 nodes" in message and "storage.shared=true" in message
    assert not command.rows("predictions")
    assert command.finish("--set", "storage.shared=true")["scored"] == len(archive.images)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE
    assert not list(Path(command.out).glob(".medfocus-probe*"))


def test_a_folder_that_is_declared_shared_but_is_not_is_refused(
    command: ScoreCommand, cluster: Cluster, hidden: Path
) -> None:
    settings = [*command.settings, f"cluster.address={cluster.address}", "storage.shared=true"]
    hidden_output = replace(command, out=str(hidden / "out"), settings=settings)
    message = last_line(hidden_output.finish(code=2))
    assert str(hidden) in message and "not the same file" in message and "mount the folder on every node" in message
    assert not hidden_output.rows("predictions")
