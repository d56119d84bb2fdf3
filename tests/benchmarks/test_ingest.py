"""A small version of the benchmark of ``pack``."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from benchmarks.ingest import __main__ as ingest
from benchmarks.ingest import planning, workload
from benchmarks.listing import bucket_of


def test_the_table_of_speeds_has_a_row_for_each_format(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workload, "SIDE", 64)
    monkeypatch.setattr(ingest, "MIN_RATIO", 1e30)
    assert not ingest.compare_speeds(tmp_path, 5)
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == list(workload.FORMATS)
    assert all(float(cell) > 0 for row in rows for cell in (row[1], row[3]))
    assert lines[-2] == "at least 1e+30 of the decoders alone: MISSED"


def test_every_object_of_a_listing_is_in_one_portion() -> None:
    with bucket_of(2500) as url, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        items, portions, _, _ = process.submit(planning.plan, url).result()
    assert items == 2500 and portions == -(-2500 // 256)
