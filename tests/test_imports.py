"""No module is imported by a name that a folder of a user may have; who may import whom is import-linter's to check."""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ROOMS = {"stages", "pipeline", "cluster", "starter"}


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


def test_nothing_is_imported_by_a_name_that_a_users_folder_may_have() -> None:
    for folder in (*ROOMS, "benchmarks", "tests"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            assert not imported(path) & ROOMS, path
