from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.resources import plan, training_share


@given(cpus=st.integers(1, 512), gpus=st.integers(0, 64))
def test_a_plan_fits_its_cluster_and_leaves_room_to_decode(cpus: int, gpus: int) -> None:
    made = plan({"CPU": cpus, "GPU": gpus})
    actors = made.segment.actors * made.segment.cpus + made.embed.actors * made.embed.cpus
    assert actors + made.decode.cpus + made.commit.cpus <= cpus + 1e-9
    assert made.segment.actors * made.segment.gpus + made.embed.actors * made.embed.gpus <= gpus + 1e-9
    assert made.segment.actors >= 1 and made.embed.actors >= 1
    assert made.device == ("cuda" if gpus else "cpu")


def test_gpus_are_taken_with_no_change_of_call() -> None:
    made = plan({"CPU": 64.0, "GPU": 4.0})
    assert (made.segment.actors, made.embed.actors) == (4, 4)
    assert made.segment.gpus + made.embed.gpus == pytest.approx(1)


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(ValueError, match="0 CPUs"):
        plan({"GPU": 1})


@given(cpus=st.integers(1, 256), workers=st.integers(1, 32))
def test_training_leaves_half_of_the_cpus_to_the_data(cpus: int, workers: int) -> None:
    share = training_share({"CPU": cpus}, workers)
    assert share.actors * share.cpus <= cpus / 2 + 1e-9
    assert share.threads >= 1 and share.gpus == 0


def test_the_launcher_file_is_what_ray_s_own_schema_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    path = Path(__file__).parents[2] / "ray_cluster.yaml"
    content = yaml.safe_load(path.read_text())
    validate_config(prepare_config(content))
    assert content["available_node_types"]["gpu_worker"]["max_workers"] <= content["max_workers"]
    # Nothing of ours listens beyond loopback.
    assert all("dashboard-host=0.0.0.0" not in command for command in content["head_start_ray_commands"])
