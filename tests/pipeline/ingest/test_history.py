"""What earlier runs have packed decides what is due, and which of their rows still count."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medfocus.pipeline.config import load_config
from medfocus.pipeline.data.manifest import Manifest, newest_manifest, write_manifest
from medfocus.pipeline.data.withdrawal import withdraw, withdrawn
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.pseudonyms import pseudonym_of
from medfocus.pipeline.ingest.catalog import Catalog
from medfocus.pipeline.ingest.history import History, patients_of
from medfocus.pipeline.ingest.portion import packer_of
from tests.pipeline.ingest.files import (
    BY_PATH,
    PSEUDONYMS,
    counted,
    ct,
    ct_samples,
    errors,
    find,
    pack_here,
    picture,
    place,
    tar_gz,
    write,
    write_each,
    zipped,
)

pytestmark = pytest.mark.usefixtures("without_isolation")


class Archive:
    """A source and its shards; each run has a catalog of its own, as one that has finished leaves none."""

    def __init__(self, folder: Path):
        self.folder, self.top, self.out = folder, folder / "in", folder / "out"
        self.runs = 0

    def begin(self, *, retry: bool = False) -> tuple[History, list[str]]:
        """Read the history and find what is due; returns it sorted."""
        self.runs += 1
        catalog = Catalog(self.folder / f"{self.runs}.sqlite")
        history = History(catalog, place(self.out), newest_manifest(place(self.out)), PSEUDONYMS)
        history.read()
        find(catalog, place(self.top), retry=retry)
        history.mark_due(withdrawn(place(self.out)))
        if retry:
            history.retry()
        history.note_earlier()
        return history, sorted(item for (item,) in catalog.query("SELECT item FROM items WHERE due"))

    def run(self, *settings: str, retry: bool = False, drop: bool = True) -> Manifest:
        """Pack what is due, and commit a version."""
        return self.pack(self.begin(retry=retry)[0], *settings, drop=drop)

    def pack(self, history: History, *settings: str, drop: bool = True) -> Manifest:
        config = load_config(None, ["burned_in.ocr=never", "pack.rows_per_shard=3", *settings])
        pack_here(history.catalog, packer_of(place(self.top), place(self.out), BY_PATH, config), 1, None)
        history.read()
        self.errors = errors(history.catalog)
        shards = history.next_shards(drop_duplicates=drop)
        history.catalog.close(remove=True)
        return write_manifest(place(self.out), shards, earlier=newest_manifest(place(self.out)), key_fingerprint="f")

    def due(self, *, retry: bool = False) -> list[str]:
        history, due = self.begin(retry=retry)
        history.catalog.close(remove=True)
        return due


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(tmp_path)
    contents: Mapping[str, bytes] = {
        **{f"{seed}.png": picture(seed) for seed in range(5)},
        "a.dcm": ct(ct_samples(1, 2, 8, 8), "P1"),
        "b.zip": zipped({"x.png": picture(10), "y.dcm": ct(ct_samples(2), "P2"), "z.png": b"no image"}),
        "c.tar.gz": tar_gz({"x.png": picture(11)}),
        "bad.png": b"no image",
        "notes.txt": b"no image",
    }
    write_each(archive.top, contents)
    return archive


PACKED = ["0.png", "1.png", "2.png", "3.png", "4.png", "a.dcm-0", "a.dcm-1", "b.zip/x.png", "b.zip/y.dcm"]
PACKED += ["c.tar.gz/x.png"]


def touch(file: Path) -> None:
    """Give a file a later time, with the same content."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def change(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    touch(file)


def test_what_is_packed_is_not_due_again(archive: Archive) -> None:
    assert len(archive.due()) == 11  # two frames are one item; two of them cannot be packed
    manifest = archive.run()
    assert sorted(counted(archive.out)) == PACKED and manifest.version == 1
    assert archive.errors == {"bad.png": "Undecodable", "b.zip/z.png": "Undecodable"}
    assert archive.due() == []


def test_new_and_changed_items_are_due_and_the_old_rows_are_replaced(archive: Archive) -> None:
    archive.run()
    write(archive.top / "new.png", picture(20))
    change(archive.top / "1.png", picture(21))
    change(archive.top / "a.dcm", ct(ct_samples(3, 2, 8, 8), "P1"))
    assert archive.due() == ["1.png", "a.dcm", "new.png"]
    manifest = archive.run()
    kept = set(PACKED) - {"1.png", "a.dcm-0", "a.dcm-1"}
    assert set(counted(archive.out)) == kept | {"1.png~1", "a.dcm~1-0", "a.dcm~1-1", "new.png"}
    assert sorted(counted(archive.out, 1)) == PACKED and manifest.version == 2
    assert sum(len(shard.replaced) for shard in manifest.shards) == 3
    change(archive.top / "1.png", picture(22))
    archive.run()
    assert "1.png~2" in counted(archive.out) and not {"1.png", "1.png~1"} & set(counted(archive.out))


def test_an_item_that_was_only_touched_is_read_once_more_and_not_written(archive: Archive) -> None:
    first = archive.run()
    touch(archive.top / "1.png"), touch(archive.top / "a.dcm")
    assert archive.due() == ["1.png", "a.dcm"]
    second = archive.run()
    assert second.shards == first.shards and archive.due() == []
    change(archive.top / "1.png", picture(30))
    archive.run()
    assert "1.png~1" in counted(archive.out) and "1.png" not in counted(archive.out)


def test_a_content_that_comes_back_is_packed_again(archive: Archive) -> None:
    archive.run()
    for seed in (31, 1):
        change(archive.top / "1.png", picture(seed))
        archive.run()
    names = {name for name in counted(archive.out) if name.startswith("1.png")}
    assert names == {"1.png~2"}


def test_a_file_that_is_restored_with_its_time_counts_again(archive: Archive) -> None:
    first = archive.run()
    contents = [(picture(seed), 10**18 + seed) for seed in (1, 31)]
    for number in range(5):
        content, time = contents[number % 2]
        (archive.top / "1.png").write_bytes(content)
        os.utime(archive.top / "1.png", ns=(time, time))
        manifest = archive.run()
        names = [name for name in counted(archive.out) if name.startswith("1.png")]
        assert names == [f"1.png~{number}" if number else "1.png"] and manifest.rows == first.rows
        assert archive.due() == []
        for earlier in range(1, manifest.version):
            counted(archive.out, earlier)  # its shards are as they were


def test_an_archive_that_changed_is_packed_anew_where_its_members_have(archive: Archive) -> None:
    archive.run()
    change(
        archive.top / "b.zip", zipped({"x.png": picture(10), "y.dcm": ct(ct_samples(4), "P2"), "w.png": picture(40)})
    )
    assert archive.due() == ["b.zip/w.png", "b.zip/x.png", "b.zip/y.dcm"]
    archive.run()
    names = {name for name in counted(archive.out) if name.startswith("b.zip")}
    assert names == {"b.zip/x.png", "b.zip/y.dcm~1", "b.zip/w.png"}


def test_a_file_that_is_gone_keeps_its_rows(archive: Archive) -> None:
    first = archive.run()
    (archive.top / "1.png").unlink(), (archive.top / "b.zip").unlink()
    assert archive.run().shards == first.shards


def test_what_could_not_be_packed_is_due_if_asked_for_or_changed(archive: Archive) -> None:
    archive.run("decode.max_pixels=100")  # each picture has 256
    assert sorted(counted(archive.out)) == ["a.dcm-0", "a.dcm-1"] and "TooManyPixels" in archive.errors.values()
    assert archive.due() == [] and len(archive.due(retry=True)) == 10
    archive.run()
    assert archive.errors["0.png"] == "TooManyPixels"  # it is told in each run
    archive.run(retry=True)
    assert sorted(counted(archive.out)) == PACKED and set(archive.errors) == {"bad.png", "b.zip/z.png"}
    assert archive.due(retry=True) == ["b.zip/z.png", "bad.png"]
    change(archive.top / "bad.png", picture(50))
    assert archive.due() == ["bad.png"]
    archive.run()
    assert "bad.png" in counted(archive.out) and set(archive.errors) == {"b.zip/z.png"}


def test_what_is_tried_again_twice_counts_at_once(archive: Archive) -> None:
    archive.run("decode.max_pixels=100")
    archive.run("decode.max_pixels=100", retry=True)
    archive.run(retry=True)
    assert sorted(counted(archive.out)) == PACKED and set(archive.errors) == {"bad.png", "b.zip/z.png"}


def test_of_the_same_pictures_the_first_is_kept(archive: Archive) -> None:
    archive.run()
    write(archive.top / "0 again.png", picture(0)), write(archive.top / "new.png", picture(60))
    write(archive.top / "new again.bmp", picture(60, "BMP"))
    manifest = archive.run()
    assert len({"new.png", "new again.bmp"} & set(counted(archive.out))) == 1
    assert "0.png" in counted(archive.out) and "0 again.png" not in counted(archive.out)
    assert manifest.rows == len(PACKED) + 1 and archive.due() == []


def test_a_replaced_content_stays_out_though_the_newer_one_is_a_duplicate(archive: Archive) -> None:
    archive.run()
    change(archive.top / "1.png", picture(2))  # as 2.png
    archive.run()
    assert not {"1.png", "1.png~1"} & set(counted(archive.out))
    (archive.top / "1.png").unlink()
    write(archive.top / "new.png", picture(60))
    archive.run()
    assert set(counted(archive.out)) == set(PACKED) - {"1.png"} | {"new.png"}


def test_a_duplicate_counts_when_the_picture_that_was_kept_has_left(archive: Archive) -> None:
    write(archive.top / "again.dcm", ct(ct_samples(2), "P9"))  # the pixels of b.zip/y.dcm, of P2
    archive.run()
    kept = {"again.dcm", "b.zip/y.dcm"} & set(counted(archive.out))
    assert len(kept) == 1
    patient = "P9" if kept == {"again.dcm"} else "P2"
    withdraw(place(archive.out), {pseudonym_of(PSEUDONYMS, "patient", patient)})
    archive.run()
    assert {"again.dcm", "b.zip/y.dcm"} & set(counted(archive.out)) == {"again.dcm", "b.zip/y.dcm"} - kept


def test_a_content_that_cannot_be_packed_leaves_the_earlier_one(archive: Archive) -> None:
    first = archive.run()
    change(archive.top / "1.png", b"no image")
    assert archive.run().shards == first.shards and archive.errors["1.png"] == "Undecodable"


def test_duplicates_may_stay(archive: Archive) -> None:
    write(archive.top / "0 again.png", picture(0))
    archive.run(drop=False)
    assert {"0.png", "0 again.png"} <= set(counted(archive.out))


def test_rows_that_are_left_out_stay_out_of_later_versions(archive: Archive) -> None:
    write(archive.top / "0 again.png", picture(0))
    first = archive.run()
    write(archive.top / "new.png", picture(60))
    second = archive.run()
    assert {shard for shard in second.shards if shard in first.shards} == set(first.shards)


def test_a_withdrawn_patient_does_not_come_back(archive: Archive) -> None:
    archive.run()
    patient = pseudonym_of(PSEUDONYMS, "patient", "P1")
    withdraw(place(archive.out), {patient})
    write(archive.top / "later.dcm", ct(ct_samples(70), "P1"))
    change(archive.top / "a.dcm", ct(ct_samples(71, 2, 8, 8), "P1"))
    assert archive.due() == []
    archive.run()
    rows = counted(archive.out)
    assert sorted(rows) == [name for name in PACKED if not name.startswith("a.dcm")]
    assert patient not in {row["patient_id"] for row in rows.values()}
    assert set(archive.errors) == {"bad.png", "b.zip/z.png"}


def test_files_of_a_withdrawn_patient_whom_only_labels_name_do_not_come_back(archive: Archive) -> None:
    history, _ = archive.begin()
    history.catalog.run("UPDATE items SET patient = 'p' WHERE item IN ('1.png', 'b.zip/x.png')")
    archive.pack(history)
    withdraw(place(archive.out), {"p"})
    change(archive.top / "1.png", picture(80))  # and no label names its patient now
    assert archive.due() == [] and archive.due(retry=True) == ["b.zip/z.png", "bad.png"]


def test_days_are_read_with_the_key(archive: Archive) -> None:
    archive.run()
    history, _ = archive.begin()
    days = dict(history.catalog.query("SELECT item, study_date FROM rows WHERE study_date IS NOT NULL"))
    assert set(days) == {"a.dcm", "b.zip/y.dcm"} and len(set(days.values())) == 1  # 2020-01-02
    history.catalog.close(remove=True)


def patients(archive: Archive, content: Any) -> set[str]:
    file = archive.folder / "patients.txt"
    file.write_bytes(content)
    history, _ = archive.begin()
    try:
        return patients_of(file, history, BY_PATH)
    finally:
        history.catalog.close(remove=True)


def test_patients_are_named_by_their_id_or_their_pseudonym(archive: Archive) -> None:
    archive.run()
    one, two, three = (pseudonym_of(PSEUDONYMS, "patient", name) for name in ("P1", "P2", "P3"))
    assert patients(archive, "\ufeffP1\r\n\r\n P3 \r\n".encode()) == {one, three}
    assert patients(archive, two.encode()) >= {two}


@pytest.mark.parametrize(("content", "message"), [(b" \n", "names no patient"), (b"\xff\xfeP\x001", "UTF-8 text file")])
def test_a_file_that_names_nobody_is_told(archive: Archive, content: bytes, message: str) -> None:
    archive.run()
    with pytest.raises(UsageError, match=message):
        patients(archive, content)
