from pathlib import Path

import pytest
import ray

from medfocus.cluster.resources import plan_resources
from medfocus.pipeline.console.logs import Progress
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.execution.actor import ENVIRONMENT
from medfocus.pipeline.execution.stream import _actors, _check_quarantined


def far(quarantined: int, rows: int) -> Progress:
    """Progress of a run over so many rows."""
    shown = Progress("score", 10 * rows, 0, lambda _: None)
    shown.add(rows, quarantined)
    return shown


@pytest.mark.parametrize(
    ("quarantined", "rows", "allowed"), [(31, 31, 0.0), (32, 32, 0.9), (70, 1000, 0.05), (5, 9, 0.5)]
)
def test_a_share_that_chance_explains_lets_a_run_go_on(quarantined: int, rows: int, allowed: float) -> None:
    _check_quarantined(far(quarantined, rows), allowed)


@pytest.mark.parametrize(("quarantined", "rows", "allowed"), [(32, 200, 0.0), (64, 64, 0.5), (120, 1000, 0.05)])
def test_more_in_quarantine_than_chance_explains_ends_a_run(quarantined: int, rows: int, allowed: float) -> None:
    with pytest.raises(MedFocusError, match=f"{quarantined} of the first {rows} rows are in quarantine"):
        _check_quarantined(far(quarantined, rows), allowed)


BEGUN_WITH = Path("/proc/self/environ")


class Asked:
    def begun_with(self) -> list[str]:
        return BEGUN_WITH.read_text().split("\0")


@pytest.mark.skipif(not BEGUN_WITH.exists(), reason="the system does not tell")
def test_an_actors_process_begins_with_its_environment(ray_session: None) -> None:
    """What is set once a process runs comes too late for the C library."""
    options = _actors(plan_resources({"CPU": 2}).models, shards=1)
    del options["compute"]  # Ray Data's own
    actor = ray.remote(Asked).options(**options).remote()
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(ray.get(actor.begun_with.remote()))
