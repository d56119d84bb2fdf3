"""The import rule of the design: a room imports only what it may."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = {"stages", "pipeline", "cluster", "starter"}
MAY = {"stages": set(), "cluster": set(), "pipeline": {"stages", "cluster"}, "starter": {"stages"}}
NEVER = {"stages": {"ray", "mlflow", "s3fs", "boto3"}, "starter": {"ray", "mlflow"}}


PREFIX = "medfocus"


def imported(path: Path) -> set[str]:
    """Names of the top-level packages that a file imports; of our own rooms as ``medfocus.ROOM``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {top(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {top(f"{node.module}.{alias.name}") for alias in node.names}
    return names


def top(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == PREFIX else parts[0]


@pytest.mark.parametrize("room", sorted(MAY))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((REPOSITORY / room).rglob("*.py"))
    ours = {f"{PREFIX}.{name}" for name in ROOMS} | {"benchmarks", "tests"}
    allowed = {f"{PREFIX}.{name}" for name in MAY[room] | {room}}
    assert files
    for path in files:
        names = imported(path)
        assert not names & ours - allowed, path
        assert not names & NEVER.get(room, set()), path


def test_nothing_is_imported_by_a_name_that_a_users_folder_may_have() -> None:
    for folder in (*ROOMS, "benchmarks", "tests"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            assert not imported(path) & ROOMS, path
