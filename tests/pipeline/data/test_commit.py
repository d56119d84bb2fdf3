"""Outputs by shard: what a reader may believe of them, whenever a run is stopped."""

import contextlib
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import PREDICTIONS, RUN_FILE, Output, part_name
from medfocus.pipeline.data.manifest import Manifest, ShardEntry
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import MedFocusError, UsageError
from tests.pipeline.data.stopped import Stopped, StoppedLocation

SETTINGS = {"model": "m/1", "max_pixels": 10}
MANIFEST = Manifest(
    tuple(ShardEntry(f"{index}", 2, 1, hashlib.sha256(f"{index}".encode()).hexdigest()) for index in range(3)),
    archive="archive",
)


def rows(names: list[str]) -> pa.Table:
    """Rows that are enough of predictions for these tests: their names."""
    return pa.table({"image_id": pa.array(names, pa.string())})


def refused(names: list[str]) -> pa.Table:
    columns = {name: ["x"] * len(names) for name in records.QUARANTINE.names}
    return pa.table(columns | {"image_id": names}, schema=records.QUARANTINE)


def output(folder: Path, *, replaces: bool = False) -> Output:
    return Output(locate(str(folder), StorageSection()), PREDICTIONS, replaces=replaces)


def record(folder: Path) -> dict:
    return json.loads((folder / RUN_FILE).read_text())


def finished(folder: Path) -> Output:
    """A run over three shards, each with a row that is predicted and one that is refused."""
    run = output(folder)
    run.begin(SETTINGS, MANIFEST)
    for number, shard in enumerate(MANIFEST.shards):
        run.commit(shard.key, rows([f"good-{number}"]), refused([f"bad-{number}"]))
    run.update(finished=True)
    return run


def image_ids(folder: Path) -> tuple[list[str], list[str]]:
    """Names that are predicted and names that are refused, of the shards that are finished."""
    names = []
    for kind in ("predictions", "quarantine"):
        parts = [path for path in (folder / kind).glob("*.parquet") if (folder / "predictions" / path.name).exists()]
        names.append([name for part in parts for name in pq.read_table(part)["image_id"].to_pylist()])
    return names[0], names[1]


def test_an_output_that_begins_again_is_unfinished_from_then_on(tmp_path: Path) -> None:
    finished(tmp_path)
    assert record(tmp_path)["finished"]
    assert output(tmp_path).begin(SETTINGS, MANIFEST)[1] == [] and record(tmp_path)["finished"]
    (tmp_path / "predictions" / part_name(MANIFEST.shards[0].key)).unlink()
    _, todo = output(tmp_path).begin(SETTINGS, MANIFEST)
    assert todo == [MANIFEST.shards[0]] and not record(tmp_path)["finished"]


def test_a_retry_keeps_the_rows_until_there_are_new_ones(tmp_path: Path) -> None:
    finished(tmp_path)
    before = image_ids(tmp_path)
    _, todo = output(tmp_path, replaces=True).begin(SETTINGS, MANIFEST, retry_quarantined=True)
    assert len(todo) == 3 and not record(tmp_path)["finished"] and image_ids(tmp_path) == before


@pytest.mark.parametrize("steps", range(4))
def test_a_retry_stopped_at_any_step_doubles_and_loses_no_row(tmp_path: Path, steps: int) -> None:
    """The row that was refused is predicted now; the shard counts as finished only with each row in one file."""
    run = finished(tmp_path)
    shard = MANIFEST.shards[1].key
    output(tmp_path, replaces=True).begin(SETTINGS, MANIFEST, retry_quarantined=True)
    place = StoppedLocation.after(steps, run.prefix)
    stopped = False
    try:
        Output(place, PREDICTIONS, replaces=True).commit(shard, rows(["good-1", "bad-1"]), refused([]))
    except Stopped:
        stopped = True
    assert stopped == (steps < 3)
    good, bad = image_ids(tmp_path)
    assert len({*good, *bad}) == len(good) + len(bad)
    _, todo = output(tmp_path).begin(SETTINGS, MANIFEST)
    assert {f"good-{number}" for number in (0, 2)} <= set(good)
    if MANIFEST.shards[1] in todo:
        assert not {"good-1", "bad-1"} & {*good, *bad}
    else:
        assert {"good-1", "bad-1"} <= {*good, *bad}


@pytest.mark.parametrize("steps", range(5))
def test_overwriting_that_is_stopped_is_reported_and_never_taken_for_a_run(tmp_path: Path, steps: int) -> None:
    run = finished(tmp_path)
    place = StoppedLocation.after(steps, run.prefix)
    other = SETTINGS | {"model": "m/2"}
    with contextlib.suppress(Stopped):
        Output(place, PREDICTIONS).begin(other, MANIFEST, overwrite=True)
    if steps == 4:  # all but the new record is done
        assert output(tmp_path).begin(other, MANIFEST)[1] == list(MANIFEST.shards)
        return
    assert steps == 0 or not record(tmp_path)["finished"]
    with pytest.raises(UsageError, match="--overwrite"):
        output(tmp_path).begin(other, MANIFEST)
    assert len(output(tmp_path).begin(other, MANIFEST, overwrite=True)[1]) == 3


def test_rows_of_an_unknown_run_are_not_taken_over(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / RUN_FILE).unlink()
    with pytest.raises(UsageError, match=r"holds rows without a run\.json"):
        output(tmp_path).begin(SETTINGS, MANIFEST)
    for content in ("no json", "[1]"):
        (tmp_path / RUN_FILE).write_text(content)
        with pytest.raises(UsageError, match="not a record of a run"):
            output(tmp_path).begin(SETTINGS, MANIFEST)


def test_rows_files_that_are_not_visible_here_end_the_run(tmp_path: Path) -> None:
    run = finished(tmp_path)
    run.check_complete(MANIFEST.shards)
    (tmp_path / "predictions" / part_name(MANIFEST.shards[0].key)).unlink()
    with pytest.raises(MedFocusError, match="rows of 1 of 3 shards were written and are not there"):
        run.check_complete(MANIFEST.shards)


def next_version() -> Manifest:
    """The archive without the second shard, with a row of the third one replaced, and with a new shard."""
    first, _, third = MANIFEST.shards
    return replace(MANIFEST, shards=(first, replace(third, rows=1, replaced=(1,)), replace(first, sha256="0" * 64)))


@pytest.mark.parametrize("steps", range(6))
def test_rows_that_the_archive_has_no_more_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int
) -> None:
    """A patient has withdrawn: no file with the rows of the shard may stay, whatever stops the call."""
    run = finished(tmp_path)
    version = next_version()
    with contextlib.suppress(Stopped):
        Output(StoppedLocation.after(steps, run.prefix), PREDICTIONS).begin(SETTINGS, version)
    assert record(tmp_path)["finished"] == (steps == 0)
    caplog.clear()
    with caplog.at_level("INFO"):
        _, todo = output(tmp_path).begin(SETTINGS, version)
    assert todo == list(version.shards[1:]) and image_ids(tmp_path) == (["good-0"], ["bad-0"])
    parts = {path.name for kind in ("predictions", "quarantine") for path in (tmp_path / kind).iterdir()}
    assert parts == {part_name(version.shards[0].key)}
    assert ("removed the rows of" in caplog.text) == (steps < 5)


def test_rows_of_another_archive_are_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(UsageError, match="holds rows of 2 shards that are not in SHARDS"):
        output(tmp_path).begin(SETTINGS, replace(next_version(), archive="another"))
    assert len(image_ids(tmp_path)[0]) == 3 and record(tmp_path)["finished"]
    same = replace(MANIFEST, archive="another")  # packed again from the same images
    assert output(tmp_path).begin(SETTINGS, same)[1] == [] and record(tmp_path)["archive"] == "another"


def test_files_of_other_programs_in_quarantine_stay(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "quarantine" / "pack.parquet").write_bytes(b"of pack")
    assert output(tmp_path).begin(SETTINGS, MANIFEST)[1] == []
    assert (tmp_path / "quarantine" / "pack.parquet").exists()
