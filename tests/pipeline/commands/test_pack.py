"""``pack`` over folders as people have them, and over an archive that grows and changes."""

import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfocus.pipeline.commands import pack
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.data.manifest import read_manifest
from medfocus.pipeline.data.withdrawal import withdrawn
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.key import load_key
from medfocus.pipeline.identity.mapping import read_mapping
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, pseudonym_of
from medfocus.pipeline.ingest.items import Naming
from tests.pipeline.ingest.files import (
    PACK_SETTINGS,
    counted,
    ct,
    ct_samples,
    decoded,
    picture,
    pixels,
    place,
    rows_of,
    survey_here,
    tar_gz,
    volume,
    write,
    write_each,
    zipped,
)


@dataclass
class Archive:
    """A source with its shards.

    Args:
        top: folder of the source.
        out: prefix of the shards.
        config: names are pseudonyms.
        result: what the last call returned.
    """

    top: Path
    out: Path
    config: Config
    result: dict[str, Any]

    @property
    def pseudonyms(self) -> Pseudonyms:
        return Pseudonyms(load_key(self.config.deid, self.config.work))

    def item(self, path: str) -> str:
        return Naming(self.pseudonyms, keep=False).item(path)

    def patient(self, number: str) -> str:
        return pseudonym_of(self.pseudonyms, "patient", number)

    def pack(self, **options: Any) -> dict[str, Any]:
        self.result = pack.run(self.config, str(self.top), str(self.out), self.labels, **options)
        assert self.result["rows"] == read_manifest(place(self.out)).rows == len(counted(self.out))
        return self.result

    @property
    def labels(self) -> list[str]:
        return [str(self.top.parent / name) for name in ("first.csv", "second.csv")]

    @property
    def shards(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.out.glob("*.parquet")}

    @property
    def refused(self) -> dict[str, str]:
        return {row["image_id"]: row["error"] for row in rows_of(self.out / "quarantine")}


CONTENTS: Mapping[str, bytes] = {
    "P1/a.dcm": ct(ct_samples(1), "P1", StudyDate="20200101"),
    "P1/b": ct(ct_samples(2, 3, 8, 8), "P1", StudyDate="20200108"),
    "P2/c.dcm": ct(ct_samples(3), "P2"),
    **{f"x/{seed}.png": picture(seed) for seed in range(8)},
    "more.zip": zipped({"8.png": picture(8), "P3.dcm": ct(ct_samples(9), "P3"), "notes.txt": b"no image"}),
    "slices.tar.gz": tar_gz({"10.png": picture(10), "v.nii": volume(1, 2)}),
    "x/broken.png": b"no image",
    "x/large.png": picture(11, side=40),
    "x/notes.txt": b"no image",
    "x/Thumbs.db": b"no image",
    "report.dcm": ct(ct_samples(1), "P1", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"),
}
FRAMES = {"P1/b": 3, "slices.tar.gz/v.nii": 2}
ITEMS = ["P1/a.dcm", "P2/c.dcm", *(f"x/{seed}.png" for seed in range(8)), "more.zip/8.png", "more.zip/P3.dcm"]
ITEMS += ["slices.tar.gz/10.png"]
SECOND = "file,label,patient_id\n" + "".join(f"x/{seed}.png,{'abab'[seed % 4]},Q{seed // 2}\n" for seed in range(8))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, work: Path, ray_session: None) -> Archive:
    """An archive of all kinds of files, packed once."""
    folder = tmp_path_factory.mktemp("packed")
    write_each(folder / "in", CONTENTS)
    write(folder / "first.csv", b"file,label\nx/0.png,b\nx/4.png,b\n"), write(folder / "second.csv", SECOND.encode())
    settings = [f"work={work}", *PACK_SETTINGS, "pack.test_share=0.4", "decode.max_pixels=1000"]
    archive = Archive(folder / "in", folder / "out", load_config(None, settings), {})
    archive.pack(audit=str(folder / "audit.json"), mapping=str(folder / "mapping"))
    return archive


@pytest.fixture
def archive(packed: Archive, tmp_path: Path) -> Archive:
    """A copy of the packed archive, which the test may change."""
    shutil.copytree(packed.top.parent, tmp_path / "copy")
    return Archive(tmp_path / "copy" / "in", tmp_path / "copy" / "out", packed.config, packed.result)


def image_ids(archive: Archive) -> set[str]:
    """The ``image_id`` of each image of the archive."""
    several = {f"{archive.item(path)}-{frame}" for path, frames in FRAMES.items() for frame in range(frames)}
    return {archive.item(path) for path in ITEMS} | several


def test_an_archive_of_all_kinds_of_files_is_packed(packed: Archive) -> None:
    rows, result = counted(packed.out), packed.result
    assert set(rows) == image_ids(packed)
    assert packed.refused == {packed.item("x/broken.png"): "Undecodable", packed.item("x/large.png"): "TooManyPixels"}
    assert (result["packed"], result["quarantined"], result["manifest_version"]) == (len(rows), 2, 1)
    assert result["bytes"] == sum(map(len, packed.shards.values())) and result["shards"] == len(packed.shards)
    pictures = decoded(rows.values())
    assert all(np.array_equal(pictures[packed.item(f"x/{seed}.png")], pixels(seed)) for seed in range(8))
    assert np.array_equal(pictures[packed.item("more.zip/8.png")], pixels(8))
    days = {path: rows[packed.item(path)]["study_day"] for path in ("P1/a.dcm", "P2/c.dcm")}
    assert days == {"P1/a.dcm": 0, "P2/c.dcm": 0} and rows[f"{packed.item('P1/b')}-1"]["study_day"] == 7
    assert rows[packed.item("P1/a.dcm")]["patient_id"] == packed.patient("P1")
    content = b"".join([*packed.shards.values(), *(file.read_bytes() for file in packed.out.rglob("*.*"))])
    assert not any(name in content for name in (b"Planted", b"more.zip", b"broken", b"P1/", b"20200108"))


def test_of_two_label_files_the_first_counts(packed: Archive) -> None:
    rows = counted(packed.out)
    classes = [rows[packed.item(f"x/{seed}.png")]["label"] for seed in range(8)]
    assert classes == ["b", "b", "a", "b", "b", "b", "a", "b"] and packed.result["labelled"] == 8
    patients = [rows[packed.item(f"x/{seed}.png")]["patient_id"] for seed in range(8)]
    assert patients == [packed.patient(f"Q{seed // 2}") for seed in range(8)]


def test_no_patient_is_in_two_splits(packed: Archive) -> None:
    splits: dict[str, set[str]] = {}
    for row in counted(packed.out).values():
        splits.setdefault(row["patient_id"] or row["image_id"].split("-")[0], set()).add(row["split"])
    assert all(len(split) == 1 for split in splits.values())
    assert set.union(*splits.values()) == {"train", "test"}
    labelled = [splits[packed.patient(f"Q{number}")] for number in range(4)]
    assert labelled.count({"test"}) in (1, 2)


def test_the_audit_has_counts_and_the_mapping_can_be_read_with_the_key(packed: Archive) -> None:
    audit = packed.top.parent / "audit.json"
    text = audit.read_text()
    assert json.loads(text)["removed"]["PatientName"] == 5 and "Planted" not in text and "P1" not in text
    mapping = packed.top.parent / "mapping"
    assert stat.S_IMODE(mapping.stat().st_mode) == 0o600 and b"P1/a.dcm" not in mapping.read_bytes()
    originals = {original.path: original for original in read_mapping(mapping, packed.pseudonyms)}
    assert set(originals) == {*ITEMS, *FRAMES, "x/broken.png", "x/large.png"}
    assert all(original.image_id == packed.item(path) for path, original in originals.items())
    numbers = {path: original.patient_id for path, original in originals.items() if original.patient_id}
    assert numbers == {"P1/a.dcm": "P1", "P1/b": "P1", "P2/c.dcm": "P2", "more.zip/P3.dcm": "P3"}


def test_packing_again_adds_what_is_new_and_rewrites_nothing(archive: Archive) -> None:
    before, rows = archive.shards, counted(archive.out)
    again = archive.pack()
    assert (again["packed"], again["manifest_version"]) == (0, 1) and archive.shards == before
    assert again["quarantined"] == 2 and len(archive.refused) == 2

    write(archive.top / "x" / "new.png", picture(20))
    later(write(archive.top / "x" / "1.png", picture(21)))
    later(archive.top / "x" / "2.png")
    (archive.top / "x" / "3.png").unlink()
    result = archive.pack()
    assert (result["packed"], result["manifest_version"]) == (2, 2)
    changed, new = archive.item("x/1.png"), archive.item("x/new.png")
    now = counted(archive.out)
    assert set(now) == (set(rows) - {changed}) | {new, f"{changed}~1"}
    assert all(now[name] == rows[name] for name in set(now) & set(rows))
    assert np.array_equal(decoded([now[f"{changed}~1"]])[f"{changed}~1"], pixels(21))
    assert now[f"{changed}~1"]["split"] == rows[changed]["split"]
    assert {name: archive.shards[name] for name in before} == before
    assert counted(archive.out, version=1) == rows
    manifest = read_manifest(place(archive.out))
    assert sum(len(shard.replaced) for shard in manifest.shards) == 1 == result["left_out"]


def later(file: Path) -> None:
    """Give a file a later time."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_withdrawn_patients_leave_and_do_not_come_back(archive: Archive, tmp_path: Path) -> None:
    before = counted(archive.out)
    patients = write(tmp_path / "patients.txt", b"P1\nQ0\nnobody\n")
    write(archive.top / "P1" / "new.dcm", ct(ct_samples(30), "P1"))
    archive.pack(withdraw=str(patients))
    gone = {archive.patient("P1"), archive.patient("Q0")}
    kept = {name for name, row in before.items() if row["patient_id"] not in gone}
    assert len(before) - len(kept) == 6 and set(counted(archive.out)) == kept
    assert gone <= withdrawn(place(archive.out))
    assert not [row for row in rows_of(archive.out) if row["patient_id"] in gone]
    noted = [row for row in rows_of(archive.out / "index") if row["patient_id"] in gone]
    assert {row["outcome"] for row in noted} == {"withdrawn"} and {row["pixels_sha256"] for row in noted} == {None}
    write(archive.top / "P2" / "new.dcm", ct(ct_samples(31), "P2"))
    write(archive.top / "x" / "new.png", picture(32)), later(write(archive.top / "x" / "1.png", picture(33)))
    write(Path(archive.labels[1]), f"{SECOND}x/new.png,a,Q0\n".encode())
    assert archive.pack()["packed"] == 1
    assert set(counted(archive.out)) == kept | {archive.item("P2/new.dcm")}
    assert archive.refused.keys() == {archive.item("x/broken.png"), archive.item("x/large.png")}


def test_a_mapping_of_what_is_packed_already_is_whole(archive: Archive, tmp_path: Path) -> None:
    assert archive.pack(mapping=str(tmp_path / "mapping"))["packed"] == 0
    first, again = (
        sorted(map(str, read_mapping(file, archive.pseudonyms)))
        for file in (archive.top.parent / "mapping", tmp_path / "mapping")
    )
    assert again == first and read_manifest(place(archive.out)).version == 1


def test_quarantined_files_are_tried_again_if_asked_for(archive: Archive) -> None:
    archive.config = load_config(None, [f"work={archive.config.work}", *PACK_SETTINGS])
    assert archive.pack()["packed"] == 0 and len(archive.refused) == 2
    result = archive.pack(retry_quarantined=True)
    assert (result["packed"], result["quarantined"], result["manifest_version"]) == (1, 1, 2)
    assert archive.item("x/large.png") in counted(archive.out)
    assert archive.refused == {archive.item("x/broken.png"): "Undecodable"}


def test_shards_of_another_key_are_refused(packed: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFOCUS_KEY", "k" * 32)
    with pytest.raises(UsageError, match="packed under another key"):
        packed.pack()


def test_a_second_call_at_the_same_time_leaves_the_first_alone(
    top: Path, tmp_path: Path, config: Config, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(top / "a.png")
    refused: list[str] = []

    def second(*arguments: Any) -> None:
        survey_here(*arguments)
        with pytest.raises(UsageError) as caught:
            pack.run(config, str(top), str(tmp_path / "out"))
        refused.append(str(caught.value))

    monkeypatch.setattr(pack, "survey", second)
    assert pack.run(config, str(top), str(tmp_path / "out"))["rows"] == 1
    assert refused == [
        "another medfocus pack with this SOURCE and these SHARDS runs on this machine; wait until it ends"
    ]
