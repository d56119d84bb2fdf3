"""What the catalog keeps of a source, from one run to the next."""

import os
import stat
import unicodedata
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfocus.pipeline.data.local_tree import Entry, Kind
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.ingest.catalog import Catalog, groups, open_catalog
from medfocus.pipeline.ingest.items import UNKNOWN, SurveyRow, distinct_texts
from medfocus.pipeline.ingest.source import LeftOut, identifier, walk_source
from tests.pipeline.ingest.files import BY_PATH, BY_PSEUDONYM, errors, find, images, place, write, write_raw

PARTS = ["e\u0301", "é", "%C3%A9", "e%CC%81", "\udce9", "%E9", "a"]


def paths(catalog: Catalog) -> dict[bytes, str]:
    return dict(catalog.query("SELECT name, path FROM files"))


def entry(name: str, stamp: str = "1 1") -> Entry:
    return Entry(name, Kind.FILE, 1, stamp=stamp)


def add(catalog: Catalog, *rows: SurveyRow) -> None:
    """Survey the files that have not been, as images or as these rows say."""
    numbers = [file["number"] for file in catalog.files_to_survey()]
    other = {row.file for row in rows}
    found = [SurveyRow(number, "", 0, 1, UNKNOWN) for number in numbers if number not in other]
    catalog.add_survey(numbers, [*found, *rows], "{}")
    catalog.name_items(BY_PATH)


def test_names_of_any_bytes_have_an_id_of_their_own(top: Path, catalog: Catalog) -> None:
    nfc, nfd = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    top.mkdir()
    names = [b"caf\xe9.png", b"caf\xe8.png", b"100%.png", nfc.encode(), nfd.encode(), b"new\nline.png"]
    names += [unicodedata.normalize("NFD", "ü.png").encode()]
    for name in names:
        write_raw(top, name, b"1")
    catalog.list_files(walk_source(place(top), LeftOut()), BY_PATH)
    found = paths(catalog)
    assert found == {
        b"caf\xe9.png": "caf%E9.png",
        b"caf\xe8.png": "caf%E8.png",
        b"100%.png": "100%.png",
        nfc.encode(): nfc,
        nfd.encode(): "e%CC%81.png",
        b"new\nline.png": "new\nline.png",
        unicodedata.normalize("NFD", "ü.png").encode(): unicodedata.normalize("NFC", "ü.png"),
    }
    for raw, path in found.items():
        assert raw == unquote_to_bytes(path) or unicodedata.normalize("NFC", raw.decode()) == path
    assert not errors(catalog)


def test_a_name_that_is_taken_goes_to_quarantine(top: Path, catalog: Catalog) -> None:
    write(top / "caf%E9.png")
    write_raw(top, b"caf\xe9.png", b"1")
    find(catalog, place(top))
    assert images(catalog) == ["caf%E9.png"] and errors(catalog) == {"caf%E9.png": "DuplicateId"}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.sets(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("".join)))
def test_the_items_of_all_names_differ(tmp_path: Path, names: set[str]) -> None:
    catalog = Catalog(tmp_path / "names.sqlite")
    catalog.list_files(map(entry, sorted(names)), BY_PSEUDONYM)
    found = paths(catalog)
    assert len(set(found.values())) == len(found) and len(found) + len(errors(catalog)) >= len(names)
    assert catalog.one("SELECT count(DISTINCT item) FROM files") == len(found)
    for name in names & {identifier(name) for name in names}:
        assert found[name.encode()] == name  # a name that is its own text keeps it
    catalog.close(remove=True)


def test_texts_of_a_group_are_distinct() -> None:
    names = ["e\u0301.png", "é.png"]
    assert distinct_texts(enumerate(names)) == {1: "é.png", 0: "e%CC%81.png"}


def test_the_file_can_be_read_by_its_owner_alone_and_is_removed(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_catalog(str(tmp_path), "source target key") as catalog:
            catalog.list_files([entry("Smith.png")], BY_PATH)
            files = list((tmp_path / "pack").glob("*.sqlite*"))
            assert files and all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    finally:
        os.umask(before)
    assert not list((tmp_path / "pack").glob("*.sqlite*"))


def test_it_stays_after_an_error_and_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_catalog(str(tmp_path), "one") as catalog:
        catalog.list_files([entry("a")], BY_PATH)
        add(catalog)
        catalog.run("INSERT INTO troubles VALUES ('a', 'b', 'c')")
        with pytest.raises(UsageError, match="another medfocus pack"), open_catalog(str(tmp_path), "one"):
            pass
        assert catalog.one("SELECT count(*) FROM troubles") == 1  # the other call has changed nothing
        with open_catalog(str(tmp_path), "another") as other:
            assert other.images() == 0
        raise ZeroDivisionError
    with open_catalog(str(tmp_path), "one") as catalog:
        assert images(catalog) == ["a"]


def test_a_work_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    write(tmp_path / "work", b"a file")
    with pytest.raises(UsageError, match="set work to a folder"), open_catalog(str(tmp_path / "work"), "name"):
        pass


def test_a_stopped_run_surveys_only_what_is_new_or_has_changed(catalog: Catalog) -> None:
    catalog.list_files([entry("a"), entry("b"), entry("gone")], BY_PATH)
    add(catalog)
    catalog.close(remove=False)
    again = Catalog(catalog.file)
    again.list_files([entry("a"), entry("b", "2 2"), entry("new")], BY_PATH)
    assert [file["name"] for file in again.files_to_survey()] == [b"b", b"new"]
    assert images(again) == ["a"]
    add(again)
    assert images(again) == ["a", "b", "new"]
    again.close(remove=True)


def test_a_name_that_is_free_again_is_given_back(catalog: Catalog) -> None:
    nfd, nfc = "e\u0301.png", "é.png"
    catalog.list_files([entry(nfd), entry(nfc)], BY_PATH)
    add(catalog)
    assert images(catalog) == ["e%CC%81.png", "é.png"]
    catalog.list_files([entry(nfd)], BY_PATH)
    assert paths(catalog) == {nfd.encode(): "é.png"}


def test_names_are_pseudonyms_and_troubles_are_told_by_them(catalog: Catalog) -> None:
    trouble = Entry("Smith.png", Kind.TROUBLE, 0, "BrokenLink", "the link leads to nothing")
    catalog.list_files([entry("Jones.png"), trouble], BY_PSEUDONYM)
    (item,) = (item for (item,) in catalog.query("SELECT item FROM files"))
    assert item == BY_PSEUDONYM.item("Jones.png") and "Jones" not in item
    assert list(catalog.refusals(BY_PSEUDONYM)) == [
        (BY_PSEUDONYM.item("Smith.png"), "Smith.png", "BrokenLink", "the link leads to nothing")
    ]


def test_what_is_no_image_is_counted_by_suffix_or_kind(catalog: Catalog) -> None:
    catalog.list_files(map(entry, ("a.txt", "b.txt", "c", "d.png")), BY_PATH)
    numbers = dict(catalog.query("SELECT name, number FROM files"))
    add(
        catalog,
        *(SurveyRow(numbers[name], "", 0, 1, UNKNOWN, "not an image") for name in (b"a.txt", b"b.txt")),
        SurveyRow(numbers[b"c"], "", 0, 1, UNKNOWN, "not an image", "DICOM structured report"),
    )
    assert catalog.left_out() == {".txt": 2, "DICOM structured report": 1} and catalog.images() == 1
    assert not errors(catalog)


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_groups_have_all_items_in_order(count: int) -> None:
    found = list(groups(range(count), 3))
    assert [item for group in found for item in group] == list(range(count)) and all(map(len, found))


def test_a_damaged_catalog_is_made_anew(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_catalog(str(tmp_path), "name") as catalog:
        file = catalog.file
        raise RuntimeError
    file.write_bytes(b"no database" * 1000)
    with open_catalog(str(tmp_path), "name") as catalog:
        assert catalog.images() == 0
    assert not file.exists()
