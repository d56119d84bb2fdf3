from pathlib import Path

import pytest
import ray
import yaml

from medfocus.cluster.errors import ClusterError
from medfocus.cluster.nodes import autoscaler_reach, await_room, node_resources
from medfocus.cluster.resources import Share

LAUNCHER = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}},
        "spot": {"resources": {"CPU": 8, "GPU": 1, "memory": 1}, "max_workers": 2},
        "decode": {"resources": {"CPU": 32}, "max_workers": 8},
        "large": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 1},
    },
}


def test_the_reach_is_what_the_launcher_s_configuration_allows(ray_session: None, tmp_path: Path) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    assert autoscaler_reach(file) == []
    file.write_text(yaml.safe_dump(LAUNCHER))
    nodes = autoscaler_reach(file)
    assert [(node["CPU"], node.get("GPU", 0)) for node in nodes] == [(96, 8), (8, 1), (8, 1)]


@pytest.mark.parametrize("content", ["- a list", "head_node_type: head\n", "a: [1"])
def test_a_file_that_is_no_configuration_is_named(ray_session: None, tmp_path: Path, content: str) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(content)
    with pytest.raises(ClusterError, match=r"not a configuration of Ray's cluster launcher; set cluster.gpus"):
        autoscaler_reach(file)


@pytest.mark.parametrize("minutes", [0, 0.03])
def test_the_wait_for_a_node_ends_with_what_is_missing(ray_session: None, minutes: float) -> None:
    cpus = sum(node["CPU"] for node in node_resources())
    with pytest.raises(ClusterError) as error:
        await_room(Share(3, 0.5, 0.5, 1), minutes)
    message = str(error.value)
    assert "\n" not in message and "asks for 3 of 0.5 CPUs and 0.5 GPUs" in message
    assert f"the cluster has 1 x {cpus:g} CPUs and 0 GPUs" in message and "cluster.gpus" in message
    # The demand does not outlive the wait.
    states = {group["state"] for group in ray.util.placement_group_table().values()}
    assert states <= {"REMOVED"}


def test_a_node_with_room_needs_no_wait(ray_session: None) -> None:
    await_room(Share(100, 0.5, 0, 1), 0)
