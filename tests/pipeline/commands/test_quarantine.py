"""What is counted as quarantined, whenever the run that wrote it was stopped."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.commands import quarantine
from medfocus.pipeline.config import Config, StorageSection
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import FEATURES, PREDICTIONS, Output, part_name
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError


def quarantined(*causes: tuple[str, str, str]) -> pa.Table:
    """Rows of stage, error and message."""
    rows = [
        {"image_id": f"{number}", "source_uri": "x", "stage": stage, "error": error, "message": message}
        for number, (stage, error, message) in enumerate(causes)
    ]
    return pa.Table.from_pylist(rows, schema=records.QUARANTINE)


def test_causes_are_counted_and_printed_the_most_frequent_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Output(locate(str(tmp_path), StorageSection()), PREDICTIONS)
    rows = pa.table({"image_id": ["good"]})
    output.commit("a" * 64, rows, quarantined(("decode", "TooLarge", "first"), ("segment", "NoRegion", "second")))
    output.commit("b" * 64, rows, quarantined(("segment", "NoRegion", "third")))
    result = quarantine.run(Config(), str(tmp_path))
    assert result == {
        "quarantined": 3,
        "causes": [
            {"stage": "segment", "error": "NoRegion", "rows": 2, "message": "second"},
            {"stage": "decode", "error": "TooLarge", "rows": 1, "message": "first"},
        ],
    }
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["2", "segment", "NoRegion", "such", "as:", "second"],
        ["1", "decode", "TooLarge", "such", "as:", "first"],
        ["3", "rows", "in", "quarantine"],
    ]


@pytest.mark.parametrize("folder", [PREDICTIONS, FEATURES])
def test_rows_of_a_shard_that_is_not_finished_do_not_count(tmp_path: Path, folder: str) -> None:
    output = Output(locate(str(tmp_path), StorageSection()), folder)
    for digest in ("a" * 64, "b" * 64):
        output.commit(digest, pa.table({"image_id": ["good"]}), quarantined(("decode", "TooLarge", digest)))
    (tmp_path / folder / part_name("a" * 64)).unlink()  # as a run that was stopped between the two files
    result = quarantine.run(Config(), str(tmp_path))
    assert result["quarantined"] == output.quarantined() == 1 and result["causes"][0]["message"] == "b" * 64


def test_rows_of_pack_count_beside_those_of_shards(tmp_path: Path) -> None:
    output = Output(locate(str(tmp_path), StorageSection()), PREDICTIONS)
    output.commit("a" * 64, pa.table({"image_id": ["good"]}), quarantined(("decode", "TooLarge", "x")))
    pq.write_table(quarantined(("pack", "EmptyImage", "y")), tmp_path / "quarantine" / "pack.parquet")
    assert quarantine.run(Config(), str(tmp_path))["quarantined"] == 2


def test_a_prefix_that_is_not_there_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is there"):
        quarantine.run(Config(), str(tmp_path / "missing"))
