"""The import rule of the design: a room imports only what it may."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = {"stages", "pipeline", "cluster", "starter", "benchmarks", "tests"}
MAY = {"stages": set(), "cluster": set(), "pipeline": {"stages", "cluster"}, "starter": {"stages"}}
NEVER = {"stages": {"ray", "mlflow", "s3fs", "boto3"}, "starter": {"ray", "mlflow"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(MAY))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = sorted((REPOSITORY / room).rglob("*.py"))
    assert files
    for path in files:
        names = imported(path)
        assert not (names & ROOMS) - MAY[room] - {room}, path
        assert not names & NEVER.get(room, set()), path
