"""The documents name what is there: paths, names, rooms, columns, and what is installed."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from sys import stdlib_module_names

import pyarrow as pa
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medfocus.pipeline.data import records

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "starter/README.md")
    if path.is_file()
)
# Pages that are made when the others are built.
GENERATED = {"configuration.md", "commands.md"}
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#\s:]+)(?:#[^)]*)?\)")
COLUMNS = {"image_id", "source_uri"}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def packages() -> list[str]:
    """Folders of the pipeline."""
    return sorted(path.parent.name for path in (REPOSITORY / "pipeline").glob("*/__init__.py"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file(document: Path) -> None:
    targets = {found["target"] for found in LINK.finditer(document.read_text())} - GENERATED
    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_and_name_of_the_code_exists(name: str) -> None:
    """A row or an item that names files of the code names nothing that none of them holds."""
    for item in re.split(r"\n(?=\||[-*] |\d+\. )|\n\n", (REPOSITORY / name).read_text()):
        quoted = re.findall(r"`([^`]+)`", item)
        paths = [REPOSITORY / text for text in (*quoted, *re.findall(r"\]\(\.\./([^)]+)\)", item)) if "/" in text]
        files = [path for path in paths if path.suffix == ".py"]
        assert all(path.is_file() for path in files), item
        content = "".join(path.read_text() for path in files)
        names = [text for text in quoted if re.fullmatch(r"_?[A-Z]\w*(\.\w+)?|_[a-z]\w+|[a-z]+_[a-z_]+", text)]
        for text in names if files else ():
            for part in () if text in COLUMNS else text.split("."):
                assert re.search(rf"\b{part}\b", content), f"{name}: {part} is in none of the files of {item!r}"


def test_the_picture_and_the_tables_have_every_room() -> None:
    picture = (REPOSITORY / "docs/rooms.svg").read_text()
    (contract,) = (
        c for c in PROJECT["tool"]["importlinter"]["contracts"] if c.get("containers") == ["medfocus.pipeline"]
    )
    layers = [name for layer in contract["layers"] for name in layer.split(" | ")]
    for room in packages():
        assert room in layers and f">{room}<" in picture
        assert f"pipeline/{room}/" in (REPOSITORY / "docs/architecture.md").read_text()
        assert f"`{room}/`" in (REPOSITORY / "CONTRIBUTING.md").read_text()
    heights = {name: int(y) for y, name in re.findall(r'y="(\d+)">(\w+)<', picture)}
    rows = [[heights[name] for name in layer.split(" | ") if name in heights] for layer in contract["layers"]]
    assert all(len(set(row)) <= 1 for row in rows)
    assert [row[0] for row in rows if row] == sorted({row[0] for row in rows if row})


def test_records_have_the_columns_that_are_documented() -> None:
    text = (REPOSITORY / "docs/records.md").read_text()
    schemas = {
        "Shard row": records.SHARD,
        "Feature row": records.feature_schema(5, 8, region=True),
        "Prediction row": records.PREDICTION,
        "Quarantine row": records.QUARANTINE,
        "Index row": records.INDEX,
    }
    for head, schema in schemas.items():
        section = text.split(f"## {head}")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (yes|no) \|", section, re.MULTILINE)
        written = [(field.name, kind(field.type), "yes" if field.nullable else "no") for field in schema]
        assert sorted(rows) == sorted(written), head


def kind(column: pa.DataType) -> str:
    """A type as docs/records.md has it."""
    if isinstance(column, pa.FixedShapeTensorType):
        return f"float16 {'[L-1]' if len(column.shape) == 1 else '[L, D]'}"
    if pa.types.is_list(column):
        return f"list of {column.value_type}"
    return "struct" if pa.types.is_struct(column) else str(column)


def test_the_readme_is_one_screen_and_its_picture_small() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 80
    assert (REPOSITORY / "docs/results.jpg").stat().st_size <= 150 << 10


def test_the_base_installation_is_what_the_commands_import() -> None:
    """A node that scores installs no package of developers, and every command finds what it imports."""
    # Of the extras excel, ocr, azure and gcs; their absence is told with the mend.
    optional = {"openpyxl", "rapidocr", "adlfs", "azure", "gcsfs"}
    # Decoders that pydicom imports.
    decoders = {"pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls"}
    required = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    providers = {
        module: {canonicalize_name(name) for name in packages_distributions()[module]}
        for module in set(imports()) - stdlib_module_names - {"medfocus", *optional}
    }
    assert not [module for module, names in providers.items() if not names & required]
    assert not required - decoders - set().union(*providers.values())


def imports() -> Iterator[str]:
    """Top-level modules that the four floors import."""
    for folder in ("stages", "pipeline", "cluster", "starter"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.partition(".")[0]
