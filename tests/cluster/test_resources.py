import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.cluster.errors import ClusterError
from medfocus.cluster.resources import Demand, plan_resources, training_share

LAPTOP = [{"CPU": 8.0}]
ONE_GPU = [{"CPU": 8.0, "GPU": 1.0}]
LARGE = [{"CPU": 16.0}] + [{"CPU": 96.0, "GPU": 8.0}] * 64
MIXED = [{"CPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0, "GPU": 4.0}, {"CPU": 32.0}]
WITH_AMX = [{"CPU": 112.0}] * 4
HEAD_ALONE = [{"CPU": 0.0}]


@given(cpus=st.integers(1, 512), gpus=st.integers(0, 64))
def test_a_plan_fits_its_node_and_leaves_room_to_decode(cpus: int, gpus: int) -> None:
    plan = plan_resources([{"CPU": cpus, "GPU": gpus}])
    actors = plan.models.processes * plan.models.cpus
    assert actors + plan.decode.cpus <= cpus + 1e-9
    assert plan.models.processes * plan.models.gpus <= gpus + 1e-9
    assert plan.models.processes >= max(1, gpus)
    assert plan.device == ("cuda" if gpus else "cpu")


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "device"),
    [
        (LAPTOP, 8, 0, "cpu"),
        (ONE_GPU, 2, 0.5, "cuda"),
        (LARGE, 1024, 0.5, "cuda"),
        (MIXED, 10, 0.5, "cuda"),
        (WITH_AMX, 448, 0, "cpu"),
    ],
)
def test_the_actors_of_each_kind_of_cluster_have_room_on_its_nodes(
    nodes: list[dict[str, float]], actors: int, gpus: float, device: str
) -> None:
    plan = plan_resources(nodes)
    assert (plan.models.processes, plan.models.gpus, plan.models.threads, plan.device) == (actors, gpus, 1, device)
    assert plan.models.room(nodes) >= actors  # node by node, not only in all
    assert plan.decode.room(nodes) >= 1


@given(
    st.lists(
        st.fixed_dictionaries({"CPU": st.integers(1, 128), "GPU": st.integers(0, 8)}).map(
            lambda node: {name: float(amount) for name, amount in node.items()}
        ),
        min_size=1,
        max_size=6,
    )
)
def test_each_node_has_room_for_the_actors_of_its_gpus_and_for_a_decoding_task(nodes: list[dict[str, float]]) -> None:
    plan = plan_resources(nodes)
    if plan.device == "cpu":
        return
    for node in (node for node in nodes if node["GPU"]):
        assert plan.models.room([node]) == 2 * node["GPU"]
        assert 2 * node["GPU"] * plan.models.cpus + plan.decode.cpus <= node["CPU"] + 1e-9


def test_a_plan_for_a_head_alone_asks_for_the_gpus_that_are_configured() -> None:
    plan = plan_resources(HEAD_ALONE, Demand(gpus=4))
    assert (plan.models.processes, plan.models.gpus, plan.device) == (8, 0.5, "cuda")
    assert plan.models.room(HEAD_ALONE) == 0 and not plan.grows
    assert plan.limits is not None and plan.limits["gpu"] == 4  # Ray Data asks the autoscaler for no more
    workers = plan_resources(HEAD_ALONE, Demand(workers=6))
    assert (workers.models.processes, workers.models.gpus, workers.device) == (6, 0, "cpu")


def test_the_reach_of_the_autoscaler_counts_as_what_is_there() -> None:
    reach = [{"CPU": 8.0, "GPU": 1.0}] * 3
    planned, present = plan_resources(HEAD_ALONE, reach=reach), plan_resources(HEAD_ALONE + reach)
    assert (planned.models, planned.device) == (present.models, present.device)
    assert not planned.grows and present.grows


def test_a_bounded_plan_has_room_to_read_the_shards_of_a_lost_node_again() -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0}] * 4
    plan = plan_resources(HEAD_ALONE, Demand(gpus=4), nodes)
    claimed = plan.models.processes * plan.models.cpus + plan.decode.processes * plan.decode.cpus
    assert plan.limits is not None and claimed <= plan.limits["cpu"]
    assert claimed + plan.decode.processes * plan.decode.cpus <= sum(node["CPU"] for node in nodes)


def test_a_gpu_can_be_taken_and_the_models_run_on_the_cpu() -> None:
    plan = plan_resources(HEAD_ALONE, Demand(gpus=2, device="cpu"))
    assert (plan.models.processes, plan.models.gpus, plan.device) == (4, 0.5, "cpu")
    assert plan_resources(ONE_GPU, Demand(device="cpu")).models.gpus == 0


def test_a_cluster_with_nothing_for_the_models_is_refused_with_the_mend() -> None:
    with pytest.raises(ClusterError, match=r"nothing to run the models on .*1 node with 0 CPUs.*set cluster.gpus"):
        plan_resources(HEAD_ALONE)
    with pytest.raises(ClusterError, match=r"has no GPU .*cluster.device=cuda.*set cluster.gpus"):
        plan_resources(LAPTOP, Demand(device="cuda"))


def test_gpus_without_a_cpu_have_room_for_no_actor() -> None:
    nodes = [{"CPU": 0.0, "GPU": 4.0}]
    assert plan_resources(nodes).models.room(nodes) == 0


@given(cpus=st.integers(1, 256), workers=st.integers(1, 32))
def test_training_leaves_half_of_the_cpus_to_the_data(cpus: int, workers: int) -> None:
    share = training_share([{"CPU": float(cpus)}], workers)
    assert share.processes * share.cpus <= cpus / 2 + 1e-9
    assert share.threads >= 1 and share.gpus == 0


def test_training_takes_gpus_that_are_there_or_asked_for() -> None:
    assert training_share(ONE_GPU, 1).gpus == 1
    assert training_share(ONE_GPU, 2).gpus == 0
    assert training_share(HEAD_ALONE, 2, Demand(gpus=2)).gpus == 1
    assert training_share(HEAD_ALONE, 2, Demand(gpus=2)).cpus > 0
    assert training_share(ONE_GPU, 1, Demand(device="cpu")).gpus == 0
