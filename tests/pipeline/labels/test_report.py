"""Several label files with precedence, and what the report of a join tells."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.labels.items import Item
from medfocus.pipeline.labels.join import Join, join_labels
from medfocus.pipeline.labels.reader import LabelFile, LabelRow, read_labels

ITEMS = [Item(f"{number}.png", f"{number}.png") for number in range(6)]


def join(folder: Path, *texts: str) -> Join:
    files = []
    for number, text in enumerate(texts):
        (folder / f"{number}.csv").write_text(text)
        files.append(read_labels(locate(str(folder / f"{number}.csv"), StorageSection())))
    return join_labels(files, lambda: ITEMS)


def test_the_first_file_that_gives_a_value_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = join(
        tmp_path,
        "file,label,patient_id\n0.png,a,\n1.png,a,P1\n2.png,,P2\n",
        "file,label,patient_id,site\n0.png,b,P0,north\n1.png,a,P1,\n2.png,b,P2,south\n3.png,A,,\n",
    )
    result.report.log()
    assert [tuple(values) for _, values in result.of(ITEMS)] == [
        ("a", "P0", "north"),
        ("a", "P1", None),
        ("b", "P2", "south"),
        ("A", None, None),
        (None, None, None),
        (None, None, None),
    ]
    assert (result.report.overridden, result.report.conflicts) == (3, 1)
    assert "3 images have values in several label files, which differ for 1; the first file counts" in caplog.text
    assert "classes 'A' and 'a' look alike" in caplog.text


def test_the_report_counts_and_fits_into_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "file,label,patient_id,site\n0.png,a,SMITH,north\n1.PNG,b,SMITH,north\n2.png,b,,\nSMITH.png,b,,\n"
    with caplog.at_level(logging.INFO):
        report = join(tmp_path, text).report
        report.log()
    content = report.as_json()
    assert (
        json.loads(json.dumps(content))
        == content
        == {
            "images": 6,
            "joined": 3,
            "labelled": 3,
            "classes": {"a": 1, "b": 2},
            "patients": 1,
            "without_patient": 1,
            "sites": {"north": 2},
            "overridden": 0,
            "conflicts": 0,
            "files": [
                {
                    "rows": 4,
                    "images": {"file": 2, "file by another letter case": 1},
                    "unused_columns": [],
                    "absent": 1,
                    "ambiguous": 0,
                    "near_misses": {},
                    "other_patients": 0,
                }
            ],
        }
    )
    assert "SMITH" not in caplog.text + json.dumps(content)
    assert caplog.records[0].fields == {"images": 3, "images_without_label": 3, "patients": 1, "sites": 1}  # type: ignore[attr-defined]


def test_no_label_file_is_no_label() -> None:
    result = join_labels([], lambda: ITEMS)
    assert all(values == (None, None, None) for _, values in result.of(ITEMS))
    assert result.report.images == 6 and result.report.joined == 0


value = st.none() | st.sampled_from("ab")


@given(st.lists(st.lists(st.tuples(value, value, value), min_size=6, max_size=6), min_size=1, max_size=3))
def test_each_value_is_that_of_the_first_file_that_has_one(files: list[list[tuple]]) -> None:
    made = [
        LabelFile(
            "x.csv", "", [LabelRow(n, f"{n}.png", None, *row) for n, row in enumerate(rows)], ("file",), "", [], {}
        )  # type: ignore[arg-type]
        for rows in files
    ]
    result = join_labels(made, lambda: ITEMS)
    overridden = conflicts = 0
    for number, (_, values) in enumerate(result.of(ITEMS)):
        told = [[rows[number][column] for rows in files if rows[number][column] is not None] for column in range(3)]
        assert tuple(values) == tuple(texts[0] if texts else None for texts in told)
        overridden += any(len(texts) > 1 for texts in told)
        conflicts += any(len(set(texts)) > 1 for texts in told)
    assert (result.report.overridden, result.report.conflicts) == (overridden, conflicts)
