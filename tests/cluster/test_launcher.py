"""``ray_cluster.yaml``: what ``ray up`` takes, and which nodes Ray's autoscaler starts from it."""

import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from medfocus.cluster.environment import DEFAULTS

PATH = Path(__file__).parents[2] / "ray_cluster.yaml"
GPU_ACTOR = {"CPU": 1, "GPU": 1}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The file, in the home of a user who has made a token, which the file copies to the nodes."""
    (tmp_path / ".ray").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    return yaml.safe_load(PATH.read_text())


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """Check a file as ``ray up`` does, and its limits as Ray's autoscaler does; the file with Ray's defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    AutoscalingConfig(copy.deepcopy(prepared)).get_node_type_configs()
    return prepared


def words(config: dict[str, Any], key: str) -> list[str]:
    """Words of all commands of a step."""
    return " ".join(config[key]).replace(";", " ").split()


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    types = validate(config)["available_node_types"]
    assert config["max_workers"] >= max(types[name]["max_workers"] for name in ("gpu_spot", "gpu_on_demand"))
    assert all(node["min_workers"] == 0 for node in types.values())
    spot = types["gpu_spot"]["node_config"].pop("InstanceMarketOptions")
    assert spot == {"MarketType": "spot"} and types["gpu_spot"] == types["gpu_on_demand"]


def test_the_head_does_no_work_and_listens_on_loopback(config: dict[str, Any]) -> None:
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}
    head = words(config, "head_start_ray_commands")
    assert {"--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1", "--disable-usage-stats"} <= set(head)
    assert "0.0.0.0" not in PATH.read_text() and "--ray-client-server-port" not in head


def test_every_node_asks_for_the_token_and_keeps_idle_workers(config: dict[str, Any]) -> None:
    name = "RAY_idle_worker_killing_time_threshold_ms"
    assert {"--env RAY_AUTH_MODE=token", f"--env {name}={DEFAULTS[name]}"} <= set(config["docker"]["run_options"])
    assert config["file_mounts"] == {"~/.ray": "~/.ray"}  # the token, and no folder of the caller's work


def test_everything_that_runs_is_pinned(config: dict[str, Any]) -> None:
    tag = config["docker"]["image"].rpartition(":")[2]
    assert tag and tag != "latest"
    images = {node["node_config"]["ImageId"] for node in config["available_node_types"].values()}
    assert len(images) == 1 and "latest_dlami" not in images
    assert not any(config[key] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"))


def test_every_machine_ends_itself(config: dict[str, Any]) -> None:
    assert config["initialization_commands"] == ["sudo shutdown -P +1440"]
    behaviours = {
        node["node_config"]["InstanceInitiatedShutdownBehavior"] for node in config["available_node_types"].values()
    }
    assert behaviours == {"terminate"} and config["provider"]["cache_stopped_nodes"] is False


def test_a_misspelt_key_is_refused(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate(config)


def test_a_misspelt_key_of_a_node_type_is_refused(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu_spot"]["max_worker"] = 8
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate(config)


def test_a_wrong_type_is_refused(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu_spot"]["resources"]["GPU"] = "one"
    with pytest.raises(jsonschema.ValidationError, match="'one' is not of type 'integer'"):
        validate(config)


def test_more_workers_at_least_than_at_most_are_refused(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu_spot"] |= {"min_workers": 3, "max_workers": 2}
    with pytest.raises(AssertionError):
        validate(config)


def test_more_workers_than_the_cluster_may_have_are_refused(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu_spot"]["min_workers"] = 9
    with pytest.raises(ValueError, match="max_workers"):
        validate(config)


def test_an_unknown_head_is_refused(config: dict[str, Any]) -> None:
    config["head_node_type"] = "heads"
    with pytest.raises(ValueError, match="head_node_type"):
        validate(config)


class Autoscaler:
    """The part of Ray's autoscaler that chooses node types, with the scorer that the file names."""

    def __init__(self, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        from ray.autoscaler._private.node_provider_availability_tracker import NodeProviderAvailabilityTracker
        from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler

        name = "RAY_AUTOSCALER_UTILIZATION_SCORER"
        (scorer,) = [w for w in words(config, "head_start_ray_commands") if w.startswith(name)]
        monkeypatch.setenv(name, scorer.partition("=")[2])
        prepared = validate(config)
        types = prepared["available_node_types"]
        self.tracker = NodeProviderAvailabilityTracker()
        self.scheduler = ResourceDemandScheduler(
            None, types, prepared["max_workers"], "head", prepared["upscaling_speed"]
        )

    def refuse(self, node_type: str) -> None:
        """Note what the cloud says when it has no such node."""
        from ray.autoscaler.node_launch_exception import NodeLaunchException

        reason = NodeLaunchException("InsufficientInstanceCapacity", "no capacity", None)
        self.tracker.update_node_availability(node_type, int(time.time()), reason)

    def accept(self, node_type: str) -> None:
        """Note that the cloud has started such a node."""
        self.tracker.update_node_availability(node_type, int(time.time()), None)

    def starts(self, requests: list[dict[str, float]], running: dict[str, int] | None = None) -> dict[str, int]:
        """Number of nodes of each type that it starts."""
        from ray.autoscaler._private.resource_demand_scheduler import get_nodes_for

        scheduler = self.scheduler
        scorer = partial(scheduler.utilization_scorer, node_availability_summary=self.tracker.summary())
        nodes, _ = get_nodes_for(scheduler.node_types, running or {}, "head", 8, requests, scorer)
        return dict(nodes)


@pytest.fixture
def autoscaler(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Autoscaler:
    return Autoscaler(config, monkeypatch)


def test_spot_nodes_are_started_first(autoscaler: Autoscaler) -> None:
    assert autoscaler.starts([GPU_ACTOR] * 3) == {"gpu_spot": 3}
    assert autoscaler.starts([GPU_ACTOR] * 30) == {"gpu_spot": 8}


def test_on_demand_nodes_are_started_where_the_cloud_has_no_spot_nodes(autoscaler: Autoscaler) -> None:
    autoscaler.refuse("gpu_spot")
    assert autoscaler.starts([GPU_ACTOR] * 3, {"gpu_spot": 2}) == {"gpu_on_demand": 3}
    autoscaler.accept("gpu_spot")
    assert autoscaler.starts([GPU_ACTOR] * 3) == {"gpu_spot": 3}


def test_on_demand_nodes_are_started_where_spot_nodes_are_at_their_limit(autoscaler: Autoscaler) -> None:
    assert autoscaler.starts([GPU_ACTOR], {"gpu_spot": 8}) == {"gpu_on_demand": 1}


def test_small_requests_share_a_node_and_what_fits_nowhere_starts_none(autoscaler: Autoscaler) -> None:
    assert autoscaler.starts([{"CPU": 1, "GPU": 0.25}] * 4) == {"gpu_spot": 1}
    assert autoscaler.starts([{"GPU": 2}]) == {}


def test_a_request_without_gpus_goes_to_a_node_without(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config["available_node_types"]["cpus"] = {"max_workers": 4, "resources": {"CPU": 64}, "node_config": {}}
    assert Autoscaler(config, monkeypatch).starts([{"CPU": 1}]) == {"cpus": 1}
