"""Local paths on several nodes, of which one has a disk of its own under the same path."""

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

from tests.faults.injection import ALL_WELL, Scoring, account

pytestmark = pytest.mark.faults

WAIT = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head on which nothing runs."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


@pytest.fixture
def hidden(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A folder that the second node of the cluster sees empty, since another one is mounted over it there."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a mount that one process alone sees needs root and unshare")
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


def last_line(told: dict) -> str:
    return told["stderr"].strip().splitlines()[-1]


def test_local_paths_on_two_nodes_are_refused_unless_said_to_be_shared(
    archive: SimpleNamespace, undisturbed: dict, scoring: Scoring, cluster: Cluster
) -> None:
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    scoring.settings.append(f"cluster.address={cluster.address}")
    told = last_line(scoring.finish(code=2))
    assert "a local path, and the cluster has 2 nodes" in told and "storage.shared=true" in told
    assert not scoring.rows("predictions")
    assert scoring.finish("--set", "storage.shared=true")["scored"] == len(archive.images)
    assert account(scoring, archive.images, undisturbed) == ALL_WELL
    assert not list(Path(scoring.out).glob(".medfocus-probe*"))


def test_a_folder_that_is_not_shared_though_it_is_said_to_be(scoring: Scoring, cluster: Cluster, hidden: Path) -> None:
    settings = [*scoring.settings, f"cluster.address={cluster.address}", "storage.shared=true"]
    elsewhere = replace(scoring, out=str(hidden / "out"), settings=settings)
    told = last_line(elsewhere.finish(code=2))
    assert str(hidden) in told and "not the same file" in told and "mount the folder on every node" in told
    assert not elsewhere.rows("predictions")
