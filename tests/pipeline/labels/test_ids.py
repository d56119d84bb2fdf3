"""Rows that name studies, series, instances, accession numbers or patients, whose ids are pseudonyms in the archive."""

import hashlib
from collections import Counter
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.items import Item
from medfocus.pipeline.labels.join import Join, check_joined, join_labels
from medfocus.pipeline.labels.near_misses import NearMiss
from medfocus.pipeline.labels.reader import LabelFile, LabelRow, read_labels


def pseudonym(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind} {text}".encode()).hexdigest()


def item(number: int) -> Item:
    """Two images a series, two series a study, two studies a patient; accession numbers have leading zeros."""
    return Item(
        image_id=pseudonym("path", f"{number}.dcm"),
        path=f"folder {number // 8}/{number}.dcm",
        patient_id=pseudonym("patient", f"{number // 8:06d}"),
        study_id=pseudonym("study", f"1.2.{number // 4}"),
        series_id=pseudonym("series", f"1.2.{number // 4}.{number // 2}"),
        instance_id=pseudonym("instance", f"1.2.{number // 4}.{number // 2}.{number}"),
        accession=pseudonym("accession", f"{number // 4:08d}"),
    )


ITEMS = [item(number) for number in range(24)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def read(file: Path, text: str) -> LabelFile:
    file.write_text(text)
    return read_labels(locate(str(file), StorageSection()))


def join(labels: LabelFile, items: list[Item] = ITEMS) -> Join:
    return join_labels([labels], lambda: items, pseudonym=pseudonym)


def classes(result: Join, items: list[Item] = ITEMS) -> dict[int, str]:
    """Class of each labelled image, by its number."""
    values = enumerate(values for _, values in result.of(items))
    return {number: value.label for number, value in values if value.label is not None}


@pytest.mark.parametrize(
    ("header", "first", "second", "size"),
    [
        ("SOPInstanceUID", "1.2.0.0.0", "1.2.0.0.1", 1),
        ("sop_instance_uid", "1.2.0.0.0", " 1.2.0.0.1\u00a0", 1),
        ("SOP UID", "1.2.0.0.0", "1.2.0.0.1 ", 1),
        ("SeriesInstanceUID", "1.2.0.0", "1.2.0.1", 2),
        ("seriesuid", "1.2.0.0", "1.2.0.1", 2),
        ("Study Instance UID", "1.2.0", "1.2.1", 4),
        ("AccessionNumber", "00000000", "00000001", 4),
        ("Accession No", "00000000", "00000001", 4),
        ("patient_id", "000000", "000001", 8),
        ("PatientID", "000000", "000001", 8),
        ("MRN", "000000", "000001", 8),
    ],
)
def test_one_row_names_all_images_of_its_id(file: Path, header: str, first: str, second: str, size: int) -> None:
    result = join(read(file, f"{header},label\n{first},a\n{second},b\n"))
    assert classes(result) == dict.fromkeys(range(size), "a") | dict.fromkeys(range(size, 2 * size), "b")
    assert result.report.joined == 2 * size and result.report.files[0].absent == 0


def test_a_row_goes_by_its_most_specific_key(file: Path) -> None:
    header = "StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,label"
    text = f"{header}\n1.2.0,1.2.0.0,1.2.0.0.1,a\n1.2.1,1.2.1.2,,b\n1.2.2,,,c\n"
    assert classes(join(read(file, text))) == {1: "a", 4: "b", 5: "b", **dict.fromkeys(range(8, 12), "c")}


def test_the_patient_of_a_row_with_another_key_is_no_key(file: Path) -> None:
    text = "file,patient_id,label\nfolder 0/0.dcm,000000,a\ngone.dcm,000001,b\n,000002,c\n"
    result = join(read(file, text))
    assert classes(result) == {0: "a"} and result.report.files[0].absent == 1


def test_a_column_that_names_nothing_gives_way_to_the_next(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "file,StudyInstanceUID,label\nexport/x1.jpg,1.2.0,a\nexport/x2.jpg,1.2.1,b\nexport/x3.jpg,1.2.99,b\n"
    result = join(read(file, text))
    result.report.log()
    assert classes(result) == dict.fromkeys(range(4), "a") | dict.fromkeys(range(4, 8), "b")
    assert "no value of column file names an image" in caplog.text
    assert result.report.files[0].absent == 1 and result.report.files[0].absent_lines == [4]


def test_two_labels_of_a_study_are_an_error_that_names_lines(file: Path) -> None:
    with pytest.raises(UsageError, match=r"labels.csv: lines 2 and 4 give one image two labels; keep one of them$"):
        join(read(file, "study_instance_uid,label\n1.2.0,a\n1.2.1,a\n1.2.0,b\n"))
    text = "study_instance_uid,sop_instance_uid,label\n1.2.0,,a\n1.2.0,1.2.0.0.1,b\n"
    with pytest.raises(UsageError, match="lines 2 and 3 give one image two labels"):
        join(read(file, text))


def test_patients_become_pseudonyms_and_the_header_comes_first(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [ITEMS[0], ITEMS[8], ITEMS[16]._replace(patient_id=None)]
    text = "study_instance_uid,patient_id,label\n1.2.0,000000,a\n1.2.2,SMITH,b\n1.2.4,000002,c\n"
    result = join(read(file, text), items)
    result.report.log()
    expected = [pseudonym("patient", f"{number:06d}") for number in range(3)]
    assert [values.patient_id for _, values in result.of(items)] == expected
    assert result.report.files[0].other_patients == [3] and result.report.patients == 3
    assert "line 3 give images another patient" in caplog.text and "SMITH" not in caplog.text


def test_a_spreadsheet_that_dropped_zeros_or_rounded_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    for row in (("AccessionNumber", "label"), (1, "a"), ("00000002", "b"), (3, "c"), (1.23456789012345e19, "d")):
        sheet.append(row)
    workbook.save(tmp_path / "labels.xlsx")
    labels = read_labels(locate(str(tmp_path / "labels.xlsx"), StorageSection()))
    result = join(labels)
    result.report.log()
    assert classes(result) == dict.fromkeys(range(8, 12), "b")
    assert result.report.files[0].near == {NearMiss.ZEROS: [2, 4], NearMiss.ROUNDED: [5]}
    assert "lines 2, 4: leading zeros differ" in caplog.text and "line 5: a spreadsheet rounded" in caplog.text
    assert "1234567890" not in caplog.text


@pytest.mark.parametrize(
    ("column", "text", "kind"),
    [
        ("accession_number", "0000001", NearMiss.ZEROS),
        ("accession_number", "000000001", NearMiss.ZEROS),
        ("accession_number", "1,23E+17", NearMiss.ROUNDED),
        ("accession_number", "0000-0001", NearMiss.SIGNS),
        ("patient_id", "1", NearMiss.ZEROS),
        ("file", "else/7.dcm", NearMiss.FOLDER),
        ("file", "folder 0/7.png", NearMiss.SUFFIX),
        ("file", "007.dcm", NearMiss.ZEROS),
        ("file", "7_.dcm", NearMiss.SIGNS),
        ("file", "overvew.dcm", NearMiss.LETTERS),
        ("file", "999.dcm", None),
        ("accession_number", "12345", None),
    ],
)
def test_near_misses_are_told_by_their_kind(file: Path, column: str, text: str, kind: NearMiss | None) -> None:
    items = [*ITEMS, Item("x", "overview.dcm")]
    right = {"file": "folder 0/0.dcm", "accession_number": "00000000", "patient_id": "000000"}[column]
    labels = read(file, f'{column},label\n{right},a\n"{text}",b\n')
    assert join(labels, items).report.files[0].near == ({} if kind is None else {kind: [3]})


def test_labels_that_match_nothing_are_one_line_with_a_hint(file: Path) -> None:
    labels = read(file, "accession_number,label\n1,a\n2,b\n")
    with pytest.raises(UsageError) as caught:
        check_joined(join(labels), [labels], "/archive")
    message = str(caught.value)
    assert message.startswith(f"{file}: names no image below /archive (read as CSV") and "\n" not in message
    assert "leading zeros differ" in message and "column accession_number" in message


ID_COLUMNS = ("sop_instance_uid", "series_instance_uid", "study_instance_uid")
few = st.sampled_from("0123")


@given(st.lists(st.tuples(few, few, few), max_size=20), st.lists(st.tuples(*[st.none() | few] * 3), max_size=6))
def test_a_join_finds_what_a_comparison_of_all_rows_and_items_finds(
    ids: list[tuple[str, str, str]], rows: list[tuple[str | None, str | None, str | None]]
) -> None:
    items = [
        Item(f"{n}", f"{n}", instance_id=one, series_id=two, study_id=three) for n, (one, two, three) in enumerate(ids)
    ]
    made = [LabelRow(line, label="x", **dict(zip(ID_COLUMNS, row, strict=True))) for line, row in enumerate(rows)]
    labels = LabelFile("labels.csv", "", made, (*ID_COLUMNS, "label"), "CSV", [], Counter())
    expected: set[int] = set()
    left = list(rows)
    for key in range(3):  # a row goes by its first id, unless no row's id in this column names an item
        hits = {n for n, own in enumerate(ids) for row in left if row[key] is not None and row[key] == own[key]}
        expected |= hits
        left = [row for row in left if row[key] is None] if hits else left
    result = join_labels([labels], lambda: items)
    assert {n for n, (_, values) in enumerate(result.of(items)) if values.label} == expected
    assert result.report.joined == len(expected)
