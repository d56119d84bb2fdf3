"""Versions of the manifest: one call commits each, and readers see whole ones."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.manifest import Manifest, ShardEntry, newest_manifest, read_manifest, write_manifest
from medfocus.pipeline.data.storage import ConditionError, Location, locate
from medfocus.pipeline.errors import MedFocusError, UsageError
from tests.pipeline.data.stopped import Stopped, StoppedLocation

SHARDS = [ShardEntry(f"shard-{name}.parquet", 3, 10, name * 64, 2) for name in "cab"]


@pytest.fixture(params=["local", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    name = f"manifest-{uuid.uuid4().hex}"
    if request.param == "s3":
        return locate(f"{request.getfixturevalue('s3')(name)}/shards", StorageSection())
    return locate(str(tmp_path / "shards") if request.param == "local" else f"memory://{name}/x", StorageSection())


@pytest.fixture
def local(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "shards"), StorageSection())


def test_manifest_is_checked(tmp_path: Path) -> None:
    place = locate(str(tmp_path), StorageSection())
    assert newest_manifest(place) is None
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        read_manifest(place)
    contents = {
        "{}": "not a MedFocus manifest",
        "[]": "not a MedFocus manifest",
        '{"version": "9", "shards": []}': "schema version 9, this is 2; pack them again into a new prefix",
        '{"version": "2", "shards": [{"nome": "x"}]}': "not a MedFocus manifest",
    }
    for content, message in contents.items():
        (tmp_path / "manifest.json").write_text(content)
        for read in (read_manifest, newest_manifest):
            with pytest.raises(UsageError, match=message):
                read(place)
    (tmp_path / "manifest.json").write_bytes(Manifest(()).to_json())
    with pytest.raises(UsageError, match="names no image"):
        read_manifest(place)


def test_each_version_is_kept(place: Location) -> None:
    first = write_manifest(place, SHARDS[:2], key_fingerprint="f")
    assert [shard.name[6] for shard in first.shards] == ["a", "c"] and (first.version, first.rows) == (1, 6)
    replaced = replace(SHARDS[0], rows=1, labelled=1, replaced=(0, 2))
    second = write_manifest(place, [*SHARDS[1:], replaced], earlier=first, key_fingerprint="f")
    assert (second.version, second.archive, second.key_fingerprint) == (2, first.archive, "f") and first.archive
    assert second.created.endswith("+00:00") and second.digest != first.digest
    assert read_manifest(place) == newest_manifest(place) == read_manifest(place, 2) == second
    assert read_manifest(place, 1) == first
    with pytest.raises(UsageError, match="no version 3 of the manifest; there is 1, 2"):
        read_manifest(place, 3)
    content = json.loads((place / "manifest.json").read())
    assert (content["manifest_version"], content["rows"], content["version"]) == (2, 7, "2")
    assert content["shards"][2] == asdict(replaced) | {"replaced": [0, 2]}


def test_of_two_packs_at_once_one_wins(place: Location) -> None:
    earlier = write_manifest(place, SHARDS[:1])

    def commit(number: int) -> str:
        try:
            return write_manifest(place, SHARDS[: 1 + number % 3], earlier=earlier).archive
        except MedFocusError as error:
            assert "\n" not in str(error)
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(commit, range(6)))
    assert sum(result == earlier.archive for result in results) == 1
    refusals = [result for result in results if result != earlier.archive]
    assert all("committed version 2 of the manifest in the meantime; start the same call" in text for text in refusals)
    assert read_manifest(place) == read_manifest(place, 2)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_commit_that_was_stopped_is_brought_to_its_end(local: Location, earlier: bool) -> None:
    first = write_manifest(local, SHARDS[:1]) if earlier else None
    with pytest.raises(Stopped):
        write_manifest(StoppedLocation.after(1, local), SHARDS, earlier=first)
    if first:
        assert read_manifest(local) == first
    with pytest.raises(MedFocusError, match="in the meantime"):
        write_manifest(local, SHARDS, earlier=first)
    newest = newest_manifest(local)
    assert newest and newest.rows == 9 and read_manifest(local) == newest
    assert write_manifest(local, SHARDS[:1], earlier=newest).version == newest.version + 1


def test_a_late_writer_puts_no_earlier_version_in_place(local: Location) -> None:
    first = write_manifest(local, SHARDS[:1])
    with pytest.raises(Stopped):
        write_manifest(StoppedLocation.after(1, local), SHARDS[:2], earlier=first)
    newest = newest_manifest(local)
    third = write_manifest(local, SHARDS, earlier=newest)
    (local / "manifests" / "manifest-000003.json").delete()
    assert newest_manifest(local) == newest and read_manifest(local) == third


class Unconditional(Location):
    """A place whose service has no conditional writes."""

    def __truediv__(self, name: str) -> Location:
        below = super().__truediv__(name)
        return Unconditional(below.store, below.path, below.uri)

    def create(self, content: bytes) -> bool:
        raise ConditionError("no conditional writes")

    def replace(self, content: bytes, version: str) -> bool:
        raise ConditionError("no conditional writes")


def test_a_service_without_conditional_writes_is_used_with_a_warning(
    local: Location, caplog: pytest.LogCaptureFixture
) -> None:
    place = Unconditional(local.store, local.path, local.uri)
    first = write_manifest(place, SHARDS[:1])
    assert "let only one medfocus pack at a time write here" in caplog.text
    assert write_manifest(place, SHARDS, earlier=first) == read_manifest(local)
    with pytest.raises(MedFocusError, match="in the meantime"):
        write_manifest(place, SHARDS, earlier=first)


@given(rows=st.integers(1, 20), replaced=st.sets(st.integers(0, 19)), other=st.sets(st.integers(0, 19)))
def test_outputs_have_other_names_where_other_rows_count(rows: int, replaced: set[int], other: set[int]) -> None:
    entry = ShardEntry("x", rows, 1, "a" * 64, replaced=tuple(sorted(row for row in replaced if row < rows)))
    table = pa.table({"row": np.arange(rows)})
    assert entry.remaining(table)["row"].to_pylist() == [row for row in range(rows) if row not in replaced]
    assert (entry.key == entry.sha256) == (not entry.replaced)
    another = replace(entry, replaced=tuple(sorted(row for row in other if row < rows)))
    assert (another.key == entry.key) == (another.replaced == entry.replaced)
    assert ShardEntry.of(json.loads(json.dumps(asdict(entry)))) == entry
