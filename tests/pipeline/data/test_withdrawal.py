"""Patients leave an archive, whatever stops the call."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.index import WITHDRAWN, read_portions, write_portion
from medfocus.pipeline.data.manifest import newest_manifest, read_manifest, write_manifest
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.data.withdrawal import Rewrite, Withdrawal, withdraw, withdrawn
from medfocus.pipeline.errors import UsageError
from tests.pipeline.data.packed import images, stored_text, write_archive, write_portions, write_shard
from tests.pipeline.data.stopped import Stopped, StoppedLocation

PORTIONS = {
    "one": [[("1a", "anna"), ("2b", "bert"), ("3a", "anna"), ("4b", None)], [("5a", "bert")]],
    "two": [[("6a", "anna")], [("7b", "carl"), ("8a", "carl")]],
}
LEFT = {"2b": "bert", "4b": None, "5a": "bert", "7b": "carl", "8a": "carl"}
# Changes of the withdrawal of one patient of this archive: the new shard, three of ``withdrawn.json``, two portions,
# two files of the manifest, and the two earlier shards.
STEPS = 10


@pytest.fixture
def prefix(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "shards"), StorageSection())


def check_without_anna(prefix: Location) -> None:
    """Nothing of the patient is left, and each other image is where the index says."""
    manifest = read_manifest(prefix)
    assert images(prefix, manifest) == LEFT and manifest.version == 2 and manifest.key_fingerprint == "f"
    rows = [row for portion in read_portions(prefix) for row in portion.rows.to_pylist()]
    places = {(row["shard"], row["row"]): row["image_id"] for row in rows if row["shard"]}
    for shard in manifest.shards:
        names = list(images(prefix, replace(manifest, shards=(shard,))))
        assert [places[shard.name, row] for row in range(len(names))] == names
    assert {row["item"] for row in rows if row["outcome"] == WITHDRAWN} == {"item 1a", "item 3a", "item 6a"}
    for row in rows:
        if row["outcome"] == WITHDRAWN:
            left = {name for name, value in row.items() if value is not None}
            assert row["patient_id"] == "anna" and left == {"item", "stamp", "outcome", "patient_id"}
    indexed = {shard for portion in read_portions(prefix) for shard in portion.shards}
    assert indexed == set(manifest.shards)
    check_nothing_left(prefix, "anna", "1a")


def check_nothing_left(prefix: Location, patient: str, image: str) -> None:
    """Only the index and the list of who has withdrawn, which keep the images out, name the patient."""
    (prefix / "withdrawn.json").delete()
    assert f"pixels of {image}".encode() not in stored_text(prefix)
    (prefix / "index").delete()
    assert patient.encode() not in stored_text(prefix) and b"pixels of 4b" in stored_text(prefix)


@pytest.mark.parametrize("store", ["local", "s3"])
def test_the_rows_of_a_patient_leave_the_archive(prefix: Location, store: str, request: pytest.FixtureRequest) -> None:
    if store == "s3":
        prefix = locate(f"{request.getfixturevalue('s3')('withdrawal')}/shards", StorageSection())
    write_archive(prefix, PORTIONS)
    assert withdrawn(prefix) == frozenset()
    assert withdraw(prefix, ["anna", "nobody"]) == Withdrawal(patients=1, rows=3, shards=2, version=2)
    assert withdrawn(prefix) == {"anna", "nobody"}
    assert withdraw(prefix, ["anna"]) == Withdrawal(patients=0, rows=0, shards=0, version=2)
    check_without_anna(prefix)


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_a_withdrawal_stopped_at_any_step_is_brought_to_its_end(prefix: Location, steps: int) -> None:
    write_archive(prefix, PORTIONS)
    stopped = False
    try:
        withdraw(StoppedLocation.after(steps, prefix), ["anna"])
    except Stopped:
        stopped = True
    assert stopped == (steps < STEPS)
    manifest = read_manifest(prefix)  # a reader sees the archive before, or after
    assert images(prefix, manifest) == LEFT if manifest.version == 2 else len(images(prefix, manifest)) == 8
    if 0 < steps < STEPS:
        with pytest.raises(UsageError, match="a withdrawal was stopped here"):
            withdrawn(prefix)
    result = withdraw(prefix, ["anna"])
    assert (result.patients, result.rows, result.shards) == ((1, 3, 2) if stopped else (0, 0, 0))
    check_without_anna(prefix)


@pytest.mark.parametrize("steps", range(STEPS))
def test_another_withdrawal_goes_on_with_the_one_that_was_stopped(prefix: Location, steps: int) -> None:
    write_archive(prefix, PORTIONS)
    with contextlib.suppress(Stopped):
        withdraw(StoppedLocation.after(steps, prefix), ["anna"])
    withdraw(prefix, ["bert"])
    left = LEFT if steps else {"1a": "anna", "3a": "anna", "6a": "anna"} | LEFT
    assert images(prefix, read_manifest(prefix)) == {image: name for image, name in left.items() if name != "bert"}
    check_nothing_left(prefix, "bert", "2b")
    assert (b"anna" in stored_text(prefix)) == (steps == 0)


def test_replaced_rows_stay_replaced_and_no_row_may_be_left(prefix: Location) -> None:
    rows = [("1a", "anna"), ("2b", "bert"), ("3a", "bert"), ("4a", "anna"), ("5a", "carl")]
    first = write_shard(prefix, "shard-x-000.parquet", rows, replaced=(0, 2, 4))
    write_portion(prefix, "x", [], [replace(first, rows=5, labelled=5, replaced=())])
    write_manifest(prefix, [first])
    assert withdraw(prefix, ["anna"]).rows == 2
    [shard] = read_manifest(prefix).shards
    assert (shard.rows, shard.labelled, shard.replaced) == (1, 1, (1, 2)) and shard.key != first.key
    [portion] = read_portions(prefix)
    assert portion.shards == (replace(shard, rows=3, labelled=3, replaced=()),)  # as they were written
    assert images(prefix, read_manifest(prefix)) == {"2b": "bert"}
    withdraw(prefix, ["bert", "carl"])
    manifest = newest_manifest(prefix)
    assert manifest and manifest.shards == () and manifest.version == 3 and not prefix.files(".parquet")


def test_shards_of_a_stopped_pack_leave_too(prefix: Location) -> None:
    """Of a portion that no manifest names yet, of a portion that is not committed, and of a write that was stopped."""
    write_archive(prefix, PORTIONS)
    write_portions(prefix, {"three": [[("9a", "anna"), ("10b", "dora")]]})
    write_shard(prefix, "shard-four-000.parquet", [("11a", "anna")])
    (prefix / ".shard-four-001.parquet.0123abcd").write(b"pixels of 12a, anna")
    (prefix / "labels.parquet").write(b"a file of the user")
    withdraw(prefix, ["anna"])
    assert (prefix / "labels.parquet").exists()
    (prefix / "labels.parquet").delete()
    [shard] = [shard for portion in read_portions(prefix) if portion.id == "three" for shard in portion.shards]
    assert images(prefix, replace(read_manifest(prefix), shards=(shard,))) == {"10b": "dora"}
    assert len(prefix.files(".parquet")) == 4
    check_nothing_left(prefix, "anna", "12a")


def test_patients_may_withdraw_before_anything_is_packed(prefix: Location) -> None:
    assert withdraw(prefix, ["anna"]) == Withdrawal(patients=0, rows=0, shards=0, version=0)
    write_portions(prefix, PORTIONS)
    assert withdrawn(prefix) == {"anna"} and withdraw(prefix, ["anna"]).rows == 3
    shards = [shard for portion in read_portions(prefix) for shard in portion.shards]
    assert images(prefix, write_manifest(prefix, shards)) == LEFT


def test_a_damaged_list_of_patients_is_told(prefix: Location) -> None:
    write_archive(prefix, PORTIONS)
    for content in (b"no json", json.dumps([]).encode(), b"{}"):
        (prefix / "withdrawn.json").write(content)
        with pytest.raises(UsageError, match="names no patients"):
            withdrawn(prefix)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.integers(1, 30), removed=st.sets(st.integers(0, 29)))
def test_rows_keep_their_order_in_the_new_file(rows: int, removed: set[int]) -> None:
    rewrite = Rewrite("old", None, None, tuple(sorted(removed)), frozenset())
    places = [rewrite.place(row) for row in range(rows)]
    kept = [row for row in range(rows) if row not in removed]
    assert [places[row] for row in kept] == list(range(len(kept)))
    assert all(places[row] is None for row in removed if row < rows)
