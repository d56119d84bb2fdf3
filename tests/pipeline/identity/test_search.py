import gzip
import io
import json
import sqlite3
import zipfile
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.charset import encode_string

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.contents import pieces_of
from medfocus.pipeline.identity.needles import encodings_of, read_needles, texts_of
from medfocus.pipeline.identity.search import Search
from tests.planted import plant

NAME = "M\u00fcller^\u00c5sa"


def numbers(needles: list[str], content: bytes) -> set[int]:
    """Numbers of the needles that a file holds."""
    search = Search(needles)
    found = ((piece, hit) for piece in pieces_of(content) for hit in search.find(piece.content, text=piece.text))
    return {hit[0] for piece, hit in found if piece.where(*hit[1:]) is not None}


@settings(deadline=None)
@given(
    st.text("abcdefgh0123456789^ ", min_size=6, max_size=20),
    st.binary(max_size=200),
    st.binary(max_size=200),
    st.sampled_from([str.lower, str.upper, str.title]),
    st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]),
)
def test_a_needle_is_found_wherever_it_is(
    needle: str, before: bytes, behind: bytes, spelling: Callable[[str], str], encoding: str
) -> None:
    form = spelling(needle).encode(encoding)
    hits = set(Search([needle]).find(before + form + behind))
    assert (1, len(before), len(before) + len(form)) in hits


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=300), st.lists(st.binary(min_size=6, max_size=8), min_size=1, max_size=5))
def test_nothing_else_is_found(content: bytes, forms: list[bytes]) -> None:
    needles = [form.decode("latin-1") for form in forms]
    search = Search(needles)
    for number, start, stop in search.find(content):
        small = content[start:stop].lower()
        texts = {form.lower() for text in texts_of(needles[number - 1]) for form in encodings_of(text)}
        assert small in texts


def test_a_needle_is_found_over_the_end_of_a_block() -> None:
    content = b"x" * ((1 << 20) - 3) + b"Miller^Anna" + b"x" * 100
    assert list(Search(["miller^anna"]).find(content)) == [(1, (1 << 20) - 3, (1 << 20) + 8)]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [NAME, NAME.upper(), NAME.lower(), "\u00c5sa M\u00fcller", "M\u00dcLLER, \u00c5SA"])
def test_letters_with_accents_are_found_in_any_case(text: str, encoding: str) -> None:
    assert numbers([NAME], b"\0\xff" + text.encode(encoding) + b"\0") == {1}


@pytest.mark.parametrize(
    ("name", "character_sets"),
    [
        ("山田^太郎", ["iso8859", "iso2022_jp"]),
        ("やまだ^たろう", ["iso8859", "iso2022_jp"]),
        ("김희중", ["iso8859", "euc_kr"]),
        ("Лужков", ["iso_ir_144"]),
        ("Διονυσιος", ["iso_ir_126"]),
        ("王小东", ["GB18030"]),
        ("张无忌", ["iso8859", "iso_ir_58"]),
    ],
)
def test_names_in_the_character_sets_of_dicom_are_found(name: str, character_sets: list[str]) -> None:
    content = encode_string(f"Yamada={name}", character_sets)
    assert numbers([name], b"\x10\x00\x10\x00PN" + content + b" \0\xff") == {1}


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%d%m%Y"])
@pytest.mark.parametrize("planted", ["20240131", "2024-01-31", "31.01.2024", "1/31/2024"])
def test_dates_are_found_with_other_separators(planted: str, form: str) -> None:
    content = f"study of {date(2024, 1, 31).strftime(form)} at noon".encode()
    assert numbers([planted], content) == {1}
    assert numbers(["20240131"], b"20240201 2024-02-01") == set()


def test_escaped_texts_are_found() -> None:
    for content in (json.dumps([NAME]), quote(NAME), ascii(NAME), f"{NAME}\n"):
        assert numbers([NAME], content.encode()) == {1}


def test_short_needles_are_words_of_texts() -> None:
    needles = ["Kim", "Anna", "Lee^Jo"]
    assert numbers(needles, b"patient KIM, anna") == {1, 2}
    assert numbers(needles, b"kimono, joanna, annam") == set()
    assert numbers(needles, b"\0\xff kim anna") == set()
    assert numbers(needles, b"\0\xff lee jo") == {3}


def test_numbers_within_digests_are_no_finding() -> None:
    digest = "a" * 20 + "20240131" + "b" * 20
    uid = "2.25.1234567890" + "20240131" + "123456789012345678"
    assert numbers(["20240131"], f"{digest} {uid}".encode()) == set()
    assert numbers(["20240131"], b"20240131101530") == {1} == numbers(["20240131"], b"1.2.840.20240131.7")


def parquet(**columns: pa.Array) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, compression="gzip", row_group_size=90, write_statistics=False)
    return stream.getvalue()


def png(**options: object) -> bytes:
    stream = io.BytesIO()
    notes = PngInfo()
    notes.add_text("Comment", "Miller^Anna", zip=True)
    Image.new("L", (8, 8)).save(stream, "PNG", pnginfo=notes)
    return stream.getvalue()


def database() -> bytes:
    """An SQLite database with a name that is on two pages of the file."""
    for place in range(4096):
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute('CREATE TABLE "odd ""name" (number, value)')
            connection.execute(
                'INSERT INTO "odd ""name" VALUES (1, ?)', ("x" * place + "Miller^Anna" + "x" * (9000 - place),)
            )
            connection.commit()
            content = connection.serialize()
        if b"Miller^Anna" not in content:
            return content
    raise AssertionError("no page ends within the name")


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", content)
    return stream.getvalue()


def columns() -> dict[str, bytes]:
    texts, others = ["x" * 50] * 200, ["y" * 50] * 200
    texts[150] = "zzz Anna Miller zzz" * 3
    return {
        "string": parquet(other=pa.array(others), text=pa.array(texts)),
        "dictionary": parquet(text=pa.array(texts).dictionary_encode()),
        "list": parquet(text=pa.array([[text, None] for text in texts])),
        "struct": parquet(text=pa.array([{"a": 1, "b": text} for text in texts])),
        "binary": parquet(image=pa.array([png() if text.startswith("z") else b"" for text in texts])),
    }


@pytest.mark.parametrize("kind", ["string", "dictionary", "list", "struct", "binary"])
def test_columns_are_searched_and_rows_named(kind: str) -> None:
    content = columns()[kind]
    assert b"Miller" not in content
    search = Search(["Miller^Anna"])
    places = {
        piece.where(start, stop)
        for piece in pieces_of(content)
        for _, start, stop in search.find(piece.content, text=piece.text)
    }
    expected = {
        "string": "column text, row 150",
        "dictionary": "column text, row 150",
        "struct": "column text.b, row 150",
        "binary": "column image, row 150, PNG zTXt",
    }
    assert len(places) == 1 and (kind == "list" or places == {expected[kind]})


def test_typed_columns_are_searched_as_texts() -> None:
    content = parquet(
        number=pa.array([7, 1234567890]), day=pa.array([None, date(2024, 1, 31)]), text=pa.array(["Mil", "ler^Anna"])
    )
    assert numbers(["1234567890", "20240131", "Miller^Anna"], content) == {1, 2}


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"log of Miller^Anna" * 10),
        zipped(b"log of Miller^Anna" * 10),
        zipped(gzip.compress(png())),
        png(),
        database(),
        gzip.compress(columns()["string"]),
    ],
    ids=["gzip", "zip", "gzip in zip", "png", "sqlite", "parquet in gzip"],
)
def test_compressed_files_are_searched(content: bytes) -> None:
    assert b"Miller^Anna" not in content
    assert numbers(["Miller^Anna"], content) == {1}


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([png(), database(), columns()["string"], zipped(png()), gzip.compress(png())]))
def test_damaged_files_are_searched_as_bytes(data: st.DataObject, whole: bytes) -> None:
    content = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert numbers(["Graham^Anna"], bytes(content) + b"Graham^Anna") == {1}


def test_planted_needles_are_found_in_their_archive(tmp_path: Path) -> None:
    """All but what is in deflated DICOM, which no output of pack holds."""
    needles = plant(tmp_path, 5)
    search = Search(needles)
    found = set()
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        found |= {number for number, _, _ in search.find(str(file.relative_to(tmp_path)).encode(), text=True)}
        found |= {
            hit[0] for piece in pieces_of(file.read_bytes()) for hit in search.find(piece.content, text=piece.text)
        }
    assert len(set(needles)) > 800 and len(found) > 0.97 * len(needles)


def test_files_of_needles(tmp_path: Path) -> None:
    lines = tmp_path / "needles.txt"
    lines.write_bytes("\ufeffM\u00fcller, Anna\n\n 20240131 \nM\u00fcller, Anna\n".encode())
    assert read_needles(lines) == ["M\u00fcller, Anna", "20240131"]
    lines.write_bytes("M\u00fcller\r\n".encode("utf-16"))
    assert read_needles(lines) == ["M\u00fcller"]
    table = tmp_path / "needles.csv"
    table.write_bytes('Patient Name;id;Birth Date\n"M\u00fcller; Anna";17;31.01.1950\n;18;\n'.encode("cp1252"))
    assert read_needles(table) == ["M\u00fcller; Anna", "17", "31.01.1950", "18"]
    lines.write_text("\nname\n")
    with pytest.raises(UsageError, match="has no needle"):
        read_needles(lines)
    with pytest.raises(UsageError, match="cannot be read"):
        read_needles(tmp_path / "missing")
