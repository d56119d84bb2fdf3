from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfocus.pipeline.data.storage import AccessError, StorageError
from medfocus.pipeline.isolation.failure import FAILURE
from medfocus.pipeline.isolation.isolation import GROUP, Isolation
from medfocus.pipeline.isolation.journal import Journal, open_journal
from medfocus.stages.batch import start, well


@pytest.fixture(scope="module")
def isolation(ray_session: None) -> Isolation:
    return Isolation("segment", open_journal())


def rows(count: int) -> dict[str, Any]:
    names = np.array([str(row) for row in range(count)], object)
    return start({"image_id": names, "shard": np.full(count, "s", object), FAILURE: np.full(count, "", object)})


class Doubling:
    """A stage that doubles the number of each well row, and raises where one of some rows is among them."""

    def __init__(self, raises: dict[int, Exception]):
        self.raises = raises
        self.calls: list[int] = []  # rows of each call

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(len(batch["image_id"]))
        out = {**batch, "doubled": np.zeros((len(batch["image_id"]), 1), int)}
        for row in well(batch):
            number = int(batch["image_id"][row])
            if number in self.raises:
                raise self.raises[number]
            out["doubled"][row] = 2 * number
        return out


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(count=st.integers(1, 3 * GROUP), poison=st.sets(st.integers(0, 3 * GROUP - 1), max_size=4))
def test_a_row_for_which_a_stage_raises_fails_alone(isolation: Isolation, count: int, poison: set[int]) -> None:
    out = isolation(Doubling({row: ValueError("P00017 is a name") for row in poison}), rows(count))
    assert out["image_id"].tolist() == [str(row) for row in range(count)]
    assert set(np.flatnonzero(out["error"] != "")) == {row for row in poison if row < count}
    assert all(out["doubled"][row, 0] == 2 * row for row in range(count) if row not in poison)
    assert {out["error"][row] for row in poison if row < count} <= {"ValueError"}
    assert not any("P00017" in message for message in out["message"]) and not out[FAILURE].any()


@pytest.mark.parametrize("error", [OSError("gone"), MemoryError(), StorageError("s3://b/x: slow")])
def test_a_transient_error_fails_the_shard_and_no_row(isolation: Isolation, error: Exception) -> None:
    out = isolation(Doubling({5: error}), rows(40))
    assert len(out[FAILURE]) == 40 and all(out[FAILURE]) and not len(well(out)) and not out["doubled"].any()
    passed = Doubling({})
    assert not len(well(isolation(passed, out))) and passed.calls == [40]  # later stages pass over its rows


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory"])
def test_short_memory_of_a_device_fails_the_shard_and_no_row(isolation: Isolation, message: str) -> None:
    out = isolation(Doubling({5: RuntimeError(message)}), rows(40))
    assert all(out[FAILURE]) and set(out["message"]) == {"its shard could not be finished"}


def test_storage_that_may_not_be_used_ends_the_run(isolation: Isolation) -> None:
    with pytest.raises(AccessError):
        isolation(Doubling({5: AccessError("s3://b: access denied")}), rows(40))


def test_bisection_takes_few_calls(isolation: Isolation) -> None:
    """A stage that works is called once a group; one row that fails costs two calls for each halving."""
    stage = Doubling({})
    isolation(stage, rows(2 * GROUP + 1))
    assert stage.calls == [GROUP, GROUP, 1]
    stage = Doubling({5: ValueError("no")})
    isolation(stage, rows(GROUP))
    assert sorted(stage.calls) == sorted([GROUP, *2 * [16, 8, 4, 2, 1], 1])  # the failed row is passed once more


def test_a_row_that_was_alone_at_two_deaths_fails_and_other_suspects_do_not(isolation: Isolation) -> None:
    journal = isolation.journal
    ray.get(journal.open.remote("s", "segment", [3, 4], "first worker"))
    assert ray.get(journal.open.remote("s", "segment", [3, 4], "second worker")) == {3: 0, 4: 0}
    for worker in ("second worker", "third worker"):
        ray.get(journal.take.remote("s", "segment", [3], worker))
        ray.get(journal.open.remote("s", "segment", [3, 4], f"{worker}'s successor"))
    stage = Doubling({})
    out = isolation(stage, rows(40))
    assert np.flatnonzero(out["error"] != "").tolist() == [3] and out["error"][3] == "WorkerDied"
    assert out["message"][3] == "the process died each of 2 times that it had this row alone"
    assert stage.calls == [GROUP, 38 - GROUP, 1, 1]  # the suspects come last, each alone
    assert all(out["doubled"][row, 0] == 2 * row for row in range(40) if row != 3)
    assert ray.get(journal.open.remote("s", "segment", [], "next worker")) == {}  # the shard has passed


def test_grey_and_coloured_parts_are_joined(isolation: Isolation) -> None:
    def paint(batch: dict[str, Any]) -> dict[str, Any]:
        channels = 3 if batch["image_id"][0] == "0" else 1
        return {**batch, "pixels": np.full((len(batch["image_id"]), 2, 2, channels), channels, np.uint8)}

    pixels = isolation(paint, rows(GROUP + 1))["pixels"]
    assert pixels.shape == (GROUP + 1, 2, 2, 3)
    assert (pixels[:GROUP] == 3).all() and (pixels[GROUP] == 1).all()


def test_the_journal_finds_the_row_that_kills_its_worker() -> None:
    journal = Journal()
    first = ("s", "decode", [0, 1, 2])
    assert journal.open(*first, "a") == {}
    assert journal.open(*first, "a") == {}  # a call that was made twice is no death
    assert journal.open(*first, "b") == {0: 0, 1: 0, 2: 0}  # the worker died with three in flight
    assert journal.open(*first, "c") == {0: 0, 1: 0, 2: 0}  # with suspects, open notes no rows
    journal.take("s", "decode", [1], "c")
    assert journal.open(*first, "d") == {0: 0, 1: 1, 2: 0}
    journal.take("s", "decode", [0], "d")
    journal.take("s", "decode", [1], "d")
    assert journal.open(*first, "e") == {0: 0, 1: 2, 2: 0}
    assert journal.open("s", "segment", [], "e") == {} and journal.open("t", "decode", [], "e") == {}
    journal.close("s", "decode")
    assert journal.open(*first, "e") == {}


def test_a_journal_that_dies_is_replaced(ray_session: None) -> None:
    isolation = Isolation("segment", open_journal())
    ray.get(isolation.journal.take.remote("s", "segment", [3], "a worker"))
    ray.kill(isolation.journal, no_restart=False)
    out = isolation(Doubling({5: ValueError("no")}), rows(40))
    assert np.flatnonzero(out["error"] != "").tolist() == [5]
