"""The README's walk-through of a cluster runs as it stands there, in a cloud on this machine.

What is replaced is the provider of ``ray_cluster.yaml``, with the shape of its workers. The nodes are processes with a
network and process ids of their own, Ray starts them by the commands of the file, and its autoscaler runs on the head.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.walkthrough import IMAGES, REPOSITORY, commands

pytestmark = pytest.mark.clusters

ISOLATED = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
Record = dict[str, Any]


@pytest.fixture(scope="module")
def record() -> Iterator[Record]:
    """What happened when the commands ran."""
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip", "mount")):
        pytest.skip("nodes of their own need unshare, nsenter, ip and mount")
    if subprocess.run([*ISOLATED, "ip", "link", "add", "br0", "type", "bridge"], capture_output=True).returncode:
        pytest.skip("nodes of their own need the right to make namespaces and networks")
    folder = Path(tempfile.mkdtemp(prefix="walk-", dir="/var/tmp"))  # not /tmp/ray, which each node has for itself
    try:
        call = [*ISOLATED, sys.executable, "-m", "tests.cluster.walkthrough", str(folder)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        environment["PYTHONPATH"] = str(REPOSITORY)
        process = subprocess.run(call, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
        yield json.loads((folder / "record.json").read_text())
    finally:
        shutil.rmtree(folder)


def step(record: Record, words: str) -> dict[str, Any]:
    """The one step whose command begins with these words."""
    (found,) = (step for step in record["steps"] if step["command"].startswith(words))
    return found


def test_every_command_ends_well(record: Record) -> None:
    assert [step["command"] for step in record["steps"]] == commands()
    assert [step for step in record["steps"] if step["code"]] == []


def test_every_image_is_scored_on_a_node_that_came_for_it(record: Record) -> None:
    assert step(record, "ray up")["nodes"] == ["head"]
    assert f"scored={IMAGES}" in step(record, "medfocus submit")["output"]
    assert any(key.startswith("out/predictions/") for key in record["keys"])
    assert "SUCCEEDED" in step(record, "medfocus jobs")["output"]


def test_on_demand_nodes_come_where_the_cloud_has_no_spot_nodes(record: Record) -> None:
    assert record["asked"][:3] == ["head", "gpu_spot", "gpu_on_demand"]
    assert step(record, "medfocus submit")["nodes"] == ["gpu_on_demand", "head"]
    assert "gpu_spot: InsufficientInstanceCapacity" in step(record, "ray exec")["output"]


def test_down_leaves_nothing(record: Record) -> None:
    assert step(record, "ray down")["nodes"] == []


def test_the_token_is_in_no_output(record: Record) -> None:
    assert "auth_token" in step(record, "ray get-auth-token")["output"]
    assert not [step for step in record["steps"] if record["token"] in step["output"]]
