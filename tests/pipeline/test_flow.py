from pathlib import Path

import pytest
import ray

from medfocus.cluster.resources import plan
from medfocus.pipeline.actors import ENVIRONMENT
from medfocus.pipeline.flow import _actors

BEGUN_WITH = Path("/proc/self/environ")


class Asked:
    def begun_with(self) -> list[str]:
        return BEGUN_WITH.read_text().split("\0")


@pytest.mark.skipif(not BEGUN_WITH.exists(), reason="the system does not tell")
def test_an_actors_process_begins_with_its_environment(ray_session: None) -> None:
    """What is set once a process runs comes too late for the C library."""
    options = _actors(plan({"CPU": 2}).models, shards=1)
    del options["compute"]  # Ray Data's own
    actor = ray.remote(Asked).options(**options).remote()
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(ray.get(actor.begun_with.remote()))
