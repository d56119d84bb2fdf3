import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.cluster.resources import plan_resources, training_share


@given(cpus=st.integers(1, 512), gpus=st.integers(0, 64))
def test_a_plan_fits_its_cluster_and_leaves_room_to_decode(cpus: int, gpus: int) -> None:
    plan = plan_resources({"CPU": cpus, "GPU": gpus})
    actors = plan.models.processes * plan.models.cpus
    assert actors + plan.decode.cpus <= cpus + 1e-9
    assert plan.models.processes * plan.models.gpus <= gpus + 1e-9
    assert plan.models.processes >= max(1, gpus)
    assert plan.device == ("cuda" if gpus else "cpu")


def test_gpus_are_taken_with_no_change_of_call() -> None:
    plan = plan_resources({"CPU": 64.0, "GPU": 4.0})
    assert (plan.models.processes, plan.models.gpus, plan.device) == (8, 0.5, "cuda")


def test_without_gpus_each_cpu_has_its_model() -> None:
    plan = plan_resources({"CPU": 16.0})
    assert (plan.models.processes, plan.models.threads) == (16, 1)


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(ValueError, match="0 CPUs"):
        plan_resources({"GPU": 1})


@given(cpus=st.integers(1, 256), workers=st.integers(1, 32))
def test_training_leaves_half_of_the_cpus_to_the_data(cpus: int, workers: int) -> None:
    share = training_share({"CPU": cpus}, workers)
    assert share.processes * share.cpus <= cpus / 2 + 1e-9
    assert share.threads >= 1 and share.gpus == 0
