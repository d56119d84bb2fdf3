"""What is said of errors that come through Ray, made by Ray itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import WorkerCrashedError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from medfocus.pipeline.console.causes import own_error, reason
from medfocus.pipeline.data.storage import StorageError
from medfocus.pipeline.errors import MedFocusError, UsageError

OURS = StorageError("s3://bucket/a  b: access denied; check the credentials")
ODD = ValueError("\x1b[31msome value\x1b[0m\nis wrong")


class FailingActor:
    """An actor that cannot start."""

    def __init__(self, error: Exception):
        raise error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def in_task(error: Exception, folder: Path) -> None:
    def work() -> None:
        raise error

    ray.get(ray.remote(work).options(num_cpus=0.1).remote())


def in_map(error: Exception, folder: Path) -> None:
    def work(row: dict[str, Any]) -> dict[str, Any]:
        raise error

    list(ray.data.range(1, override_num_blocks=1).map(work, num_cpus=0.1).iter_rows())


def in_actor(error: Exception, folder: Path) -> None:
    pool = {"compute": ActorPoolStrategy(size=1), "fn_constructor_args": (error,), "num_cpus": 0.1}
    list(ray.data.range(1, override_num_blocks=1).map_batches(FailingActor, **pool).iter_rows())


def in_training(error: Exception, folder: Path) -> None:
    def work(_: dict[str, Any]) -> None:
        raise error

    scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.1})
    TorchTrainer(
        work, train_loop_config={}, scaling_config=scaling, run_config=RunConfig(storage_path=str(folder))
    ).fit()


@pytest.mark.parametrize("place", [in_task, in_map, in_actor, in_training])
def test_the_cause_of_an_error_is_said_and_nothing_of_ray(
    ray_session: None, tmp_path: Path, place: Callable[[Exception, Path], None]
) -> None:
    with pytest.raises(Exception) as caught:
        place(OURS, tmp_path)
    assert reason(caught.value) == str(OURS) and str(own_error(caught.value)) == str(OURS)
    with pytest.raises(Exception) as caught:
        place(ODD, tmp_path)
    assert reason(caught.value) == "ValueError: some value" and own_error(caught.value) is None


def test_a_worker_that_died_is_said_without_its_process_id(ray_session: None) -> None:
    def die() -> None:
        os._exit(1)

    with pytest.raises(WorkerCrashedError) as caught:
        ray.get(ray.remote(die).options(num_cpus=0.1, max_retries=0).remote())
    assert reason(caught.value) == "a worker process died, most often for lack of memory"


def test_an_error_of_this_process_is_itself() -> None:
    assert str(own_error(UsageError("a; b"))) == "a; b" and own_error(UsageError("a; b")).exit_code == 2
    assert own_error(KeyError("x")) is None and reason(KeyError("x")) == "KeyError: 'x'"
    assert reason(MemoryError()) == "MemoryError"
    try:
        try:
            raise OSError("disk")
        except OSError as error:
            raise MedFocusError("work: no room; free some") from error
    except MedFocusError as error:
        assert reason(error) == "work: no room; free some"
