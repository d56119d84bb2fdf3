"""Label files as spreadsheets and programs write them, read into the same rows."""

import csv
import io
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.reader import LabelFile, normal_form, read_labels

HEADER = ("file", "label", "patient_id")
ROWS = [(f"{index}.png", ("malignant", "benign")[index % 2], f"P{index}") for index in range(4)]


def read(path: Path, content: bytes | None = None) -> LabelFile:
    if content is not None:
        path.write_bytes(content)
    return read_labels(locate(str(path), StorageSection()))


def values(labels: LabelFile) -> list[tuple]:
    return [(row.file, row.label, row.patient_id) for row in labels.rows]


def written(rows: Sequence[Sequence[str]], **dialect) -> str:
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels"


PLAIN = written([HEADER, *ROWS])


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\r\n", "\n"),
        PLAIN.replace("\r\n", "\r"),
        PLAIN.rstrip(),
        "\ufeff" + PLAIN,
        written([HEADER, *ROWS], delimiter=";"),
        written([HEADER, *ROWS], delimiter="\t"),
        written([HEADER, *ROWS], delimiter="|"),
        "sep=;\r\n" + written([HEADER, *ROWS], delimiter=";"),
        '\ufeff"sep=,"\r\n' + PLAIN,
        "sep=^\n" + written([HEADER, *ROWS], delimiter="^"),
        written([HEADER, *ROWS], quoting=csv.QUOTE_ALL),
        written([HEADER, *ROWS], quoting=csv.QUOTE_ALL, delimiter=";"),
        "\ufeff" + written([("\ufefffile", "label", "patient_id"), *ROWS], quoting=csv.QUOTE_ALL),
        "\u00ef\u00bb\u00bf" + PLAIN,
        written([("File", " LABEL ", "Patient ID"), *ROWS]),
        written([("FILE\u00a0", "Label", "PatientID"), *ROWS]),
        "\r\n,,\r\n" + written([(*HEADER, ""), *[(*row, "") for row in ROWS], ("", "", "", "")]) + "\r\n ,\t,\r\n",
        written([HEADER, *[(*row, "", "") for row in ROWS]]),
        written([HEADER, *[(name, f"\u00a0{label} ", f"\u200b{who}\t") for name, label, who in ROWS]]),
        '"file" , "label" ,"patient_id"\n' + "".join(f'"{a}" , "{b}" ,"{c}" \n' for a, b, c in ROWS),
        written([HEADER, *ROWS[:2]]) + PLAIN.replace("0.png", "2.png").split("1.png")[0] + written(ROWS[3:]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_dialect_gives_the_same_rows(file: Path, content: str, encoding: str) -> None:
    found = values(read(file, content.encode(encoding)))
    expected = ROWS if "2.png,malignant,P0" not in content else [*ROWS[:2], ("2.png", "malignant", "P0"), ROWS[3]]
    assert found == expected


@pytest.mark.parametrize(("encoding", "end"), [("cp1252", "\r\n"), ("latin-1", "\n"), ("mac_roman", "\r")])
def test_eight_bit_text_is_read_and_said(file: Path, encoding: str, end: str, caplog: pytest.LogCaptureFixture) -> None:
    content = end.join(["file;label", "0.png;Ödem", "1.png;naïf", "2.png;Müller-Läsion"]).encode(encoding)
    with caplog.at_level(logging.INFO):
        labels = read(file, content)
        labels.log()
    assert [row.label for row in labels.rows] == ["Ödem", "naïf", "Müller-Läsion"]
    assert "not UTF-8" in caplog.text and "separated by semicolon" in caplog.text


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_reports_of_several_lines_and_any_length(file: Path, delimiter: str) -> None:
    report = 'Befund: 5 x 7 mm, "rund";\r\n\tlinks\r\n\r\nNachtrag\n' * 30
    rows = [(f"{index}.png", report[index % 100 :], ("a", "b")[index % 2]) for index in range(3000)]
    rows.append(("long.png", "x\n" * 200_000, "a"))
    labels = read(file, written([("file", "report", "label"), *rows], delimiter=delimiter).encode())
    assert [(row.file, row.label) for row in labels.rows] == [(name, label) for name, _, label in rows]


def test_none_is_empty_or_nan_and_a_class_may_be_called_na(file: Path) -> None:
    content = "file,label,patient_id,site\na,nan,NaN,NA\nb, ,NA,nan\nc,NA,,x\nd,None,None\ne\n"
    assert [row[3:6] for row in read(file, content.encode()).rows] == [
        (None, None, "NA"),
        (None, None, None),
        ("NA", None, "x"),
        ("None", None, None),
        (None, None, None),
    ]


def test_a_whole_number_is_one_class_however_it_is_written(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        labels = read(file, b"file,label,patient_id\na,1\nb,1.0,7.0\nc,0.0,7\nd,0,x\ne,1.5\nf,01\n")
        labels.log()
    assert [row.label for row in labels.rows] == ["1", "1", "0", "0", "1.5", "01"]
    assert [row.patient_id for row in labels.rows] == [None, "7", "7", "x", None, None]
    assert "'1.0' as '1' (1 rows)" in caplog.text


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ("file;label\na;1,0\nb;0,0\nc;1\n", ["1", "0", "1"]),
        ("file;label\na;1,0\nb;0,5\n", ["1,0", "0,5"]),  # half points, or two labels: not clear
        ('file,label\na,"1,0"\nb,"0,0"\n', ["1,0", "0,0"]),
    ],
)
def test_a_decimal_comma_is_read_where_it_is_clear(file: Path, content: str, classes: list[str]) -> None:
    assert [row.label for row in read(file, content.encode()).rows] == classes


def test_spellings_of_a_class_are_one_but_for_letter_case(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = "café au lait", unicodedata.normalize("NFD", "café  au\u00a0lait ")
    with caplog.at_level(logging.INFO):
        labels = read(file, f"file,label\na,{one}\nb,{other}\nc,Café au lait\nd,plain\n".encode())
        labels.log()
    assert [row.label for row in labels.rows] == [one, one, "Café au lait", "plain"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "'Café au lait' and 'café au lait'" in warnings[0]


def test_one_line_says_what_was_understood(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(file, b"sep=;\r\n" + written([HEADER, *ROWS], delimiter=";").encode()).log()
    assert len(caplog.records) == 1
    record = caplog.records[0]
    assert record.getMessage() == "labels: CSV, utf-8, separated by semicolon"
    assert record.fields == {  # type: ignore[attr-defined]
        "rows": 4,
        "columns": "file,label,patient_id",
        "classes": "'benign' 2, 'malignant' 2",
    }


def test_a_wrong_column_is_not_shown_in_the_log(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A column of names or reports as the label: its values are no classes, and may identify patients."""
    with caplog.at_level(logging.INFO):
        read(
            file, written([("file", "label"), *[(f"{index}", f"Smith {index} ") for index in range(60)]]).encode()
        ).log()
    told = caplog.text + str([vars(record) for record in caplog.records])
    assert "60 classes" in told and "Smith" not in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "column file is missing"),
        (b"name,label\nSmith,a\n", "column file is missing; the header must name file (or image_id) and label"),
        (b"Smith.png,benign\nJones.png,benign\n", "column file is missing"),
        (b"file,diagnosis\nSmith,a\n", "column label is missing"),
        (b"file,label,Label\nSmith,a,b\n", "column label is there 2 times"),
        (b"file,label\nx,a\nSmith,a,b\n", "line 3 has 3 values, the header has 2"),
        (b'file,label\nx,"a\nb"\n"Smith,a\ny,b\n', "line 4: a quotation mark"),
        (b'file,label\nx,a\n"Smith "J" x",a\n', "line 3: a quotation mark"),
        ("file,label\nSmith,Ödem\nx,a\n".encode() + b"Smith,\xff\n", "line 4 is not UTF-8, though others are"),
        (b"\xef\xbb\xbffile,label\nx,a\nSmith,\xff\n", "line 3 is not utf-8-sig"),
        ("file,label\nx,a\nSmith,a\n".encode("utf-16") + b"\x00", "line 4 is not utf-16"),
        (b"file,label\nx,a\nSmith\0,a\n", "line 3 holds a zero byte"),
        (b"PAR1Smith", "not a whole Parquet file"),
        (b"PK\x03\x04Smith", "not a whole Excel file"),
        (b"\xd0\xcf\x11\xe0Smith", "is an old Excel file (.xls); save it as CSV"),
        (b"\x1f\x8bSmith", "is compressed"),
    ],
)
def test_a_broken_file_is_one_line_that_shows_none_of_it(file: Path, content: bytes, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(file, content)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and told in message and "\n" not in message and "Smith" not in message


def test_a_file_that_is_not_there_is_told(file: Path) -> None:
    for place in (file, file.parent):
        with pytest.raises(UsageError, match="no such label file"):
            read(place)


@pytest.mark.parametrize(
    "columns",
    [
        {"label": pa.array(["1", "0", None, "nan"])},
        {"label": pa.array([1, 0, None, None], pa.int8())},
        {"label": pa.array([1.0, 0.0, float("nan"), None])},
        {"label": pa.array(["1", "0", None, ""]).dictionary_encode()},
        {"Label": pa.array([b"1", b"0", None, None]), "report": pa.array([["x"], [], None, ["y"]])},
    ],
)
def test_parquet_of_any_type(file: Path, columns: dict[str, pa.Array]) -> None:
    pq.write_table(pa.table({"file": ["a", "b", "c", "d"], "patient_id": [7.0, 7.0, 8.0, None]} | columns), file)
    labels = read(file)
    assert values(labels) == [("a", "1", "7"), ("b", "0", "7"), ("c", None, "8"), ("d", None, None)]
    assert labels.format == "Parquet"


def test_a_column_of_lists_is_told(file: Path) -> None:
    pq.write_table(pa.table({"file": ["a"], "label": [["x", "y"]]}), file)
    with pytest.raises(UsageError, match="column label is list<"):
        read(file)


def test_an_excel_file_is_read_from_the_sheet_that_has_the_columns(file: Path) -> None:
    book = openpyxl.Workbook()
    book.active["A1"] = "Export of 2026"
    sheet = book.create_sheet("labels")
    for row in [(), ("File", "Label ", "patient_id", None), ("0.png", 1, 7.0), (), (1, 0.0, None), ("c", " x ", "y")]:
        sheet.append(row)
    book.save(file)
    labels = read(file)
    assert values(labels) == [("0.png", "1", "7"), ("1", "0", None), ("c", "x", "y")]
    assert [row.line for row in labels.rows] == [3, 5, 6] and labels.format == "Excel, sheet 2 of 2"


def test_without_openpyxl_the_extra_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = openpyxl.Workbook()
    book.save(file)
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(UsageError, match=r"pip install 'medfocus\[excel\]'"):
        read(file)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(cells, cells, cells, cells), min_size=1, max_size=8),
    order=st.permutations(["file", "label", "patient_id", "site"]),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]),
    named=st.booleans(),
)
def test_any_values_survive_any_dialect(file: Path, rows, order, delimiter, end, quoting, encoding, named) -> None:
    """Whatever the cells hold and however they are written, the rows are those of the same cells in Parquet."""
    names = ["file", "label", "patient_id", "site"]
    if quoting == csv.QUOTE_MINIMAL:  # the writer quotes no end of line but its own
        rows = [[re.sub("[\r\n]", end[0], cell) for cell in row] for row in rows]
    table = pa.table({name: [row[index] for row in rows] for index, name in enumerate(names)})
    pq.write_table(table, file)
    expected = [row[1:] for row in read(file).rows]
    text = written(
        [order, *[[row[names.index(name)] for name in order] for row in rows]],
        delimiter=delimiter,
        quoting=quoting,
        lineterminator=end,
    )
    found = [row[1:] for row in read(file, ((f"sep={delimiter}{end}" if named else "") + text).encode(encoding)).rows]

    def bare(row: tuple) -> tuple:  # csv takes blanks before a value for none of it
        return (row[0].lstrip(" ").replace('" ', '"') if row[0] else None, *row[1:])

    assert [bare(row) for row in found] == [bare(row) for row in expected]


@given(st.text(max_size=12))
def test_the_normal_form_is_one_of_its_own_spellings(text: str) -> None:
    once = normal_form(text)
    assert normal_form(once) == once
    assert normal_form(f"\u00a0{unicodedata.normalize('NFD', once)}\u200b ") == once


def test_files_of_others_are_read(label_files: Path) -> None:
    for path in sorted(label_files.glob("*.csv")):
        labels = read(path)
        assert [(row.label, row.patient_id) for row in labels.rows] == [row[1:] for row in ROWS], path.name
