"""Ray clusters of one node, each with a job server, and users of them."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers

REPOSITORY = Path(__file__).parents[2]
TOKEN = "a" * 64


def account(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user of a cluster, who has the command ``medfocus`` and no variables of Ray."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MEDFOCUS"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**plain, "HOME": str(home), "PATH": path, "PYTHONPATH": str(REPOSITORY), **variables}


@pytest.fixture(scope="session")
def head() -> Iterator[servers.RayHead]:
    """A cluster that asks for the token ``TOKEN``."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        environment = account(Path(folder), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
        with servers.ray_head(Path(folder), environment) as started:
            yield started
