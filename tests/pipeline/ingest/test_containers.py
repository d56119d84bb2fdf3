"""Archives made by zipfile, tarfile and by hand are read whole, and each fault is told without ending the rest."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.ingest.containers import (
    FIRST_BYTES,
    Member,
    RefusedMember,
    container_kind,
    members,
    open_members,
)
from tests.pipeline.ingest.archives import NOISE, PACKERS, Files, errors, read, tar_gz, tarred, zipped

PART = st.text(st.characters(exclude_characters="/\\:\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
NAME = st.lists(PART.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)
# The first byte is that of no archive.
CONTENT = st.binary(max_size=2000).map(lambda content: b"\x89" + content)
FILES = st.dictionaries(NAME, CONTENT, min_size=1, max_size=6)


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
@given(files=FILES)
@settings(max_examples=40, deadline=None)
def test_what_was_packed_is_read(packer: Callable[[Files], bytes], files: dict[str, bytes]) -> None:
    content = packer(files.items())
    listed = list(members(io.BytesIO(content)))
    assert [(part.name, part.size) for part in listed if isinstance(part, Member)] == [
        (name, len(packed)) for name, packed in files.items()
    ]
    assert read(content) == list(files.items())
    some = set(list(files)[::2])
    assert dict(open_members(io.BytesIO(content), some)) == {name: files[name] for name in some}


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
@given(files=FILES, share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_an_archive_that_is_cut_off_gives_what_is_whole(
    packer: Callable[[Files], bytes], files: dict[str, bytes], share: float
) -> None:
    """Each member has its own content or a refusal, and each name that is asked for comes."""
    content = packer(files.items())
    cut = content[: int(share * (len(content) - 1))]
    for name, part in read(cut):
        assert part == files[name] if isinstance(part, bytes) else part in ("Truncated", "DamagedMember", "Unsupported")
    found = dict(open_members(io.BytesIO(cut), files.keys()))
    assert found.keys() == files.keys() and all(
        isinstance(part, RefusedMember) or part == files[name] for name, part in found.items()
    )


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
def test_of_three_members_two_lie_before_the_cut(packer: Callable[[Files], bytes]) -> None:
    import random

    noise = [random.Random(seed).randbytes(20_000) for seed in range(3)]
    content = packer([(f"{index}.png", part) for index, part in enumerate(noise)])
    found = read(content[:50_000])
    assert found[:2] == [("0.png", noise[0]), ("1.png", noise[1])]
    assert found[2:] and all(part == "Truncated" for _, part in found[2:])


@pytest.mark.parametrize("packer", [zipped, tarred, tar_gz])
@given(files=FILES, place=st.floats(0, 1), value=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_wrong_byte_never_ends_in_an_exception(
    packer: Callable[[Files], bytes], files: dict[str, bytes], place: float, value: int
) -> None:
    content = bytearray(packer(files.items()))
    content[int(place * (len(content) - 1))] ^= value
    for name, part in read(bytes(content)):
        if packer is zipped and isinstance(part, bytes) and name in files:
            assert part == files[name]  # each member has a checksum


@pytest.mark.parametrize(
    "name", ["../a.png", "a/../../b.png", "/etc/a.png", "C:\\a.png", "C:a.png", "..\\a.png", "\\\\host\\a.png"]
)
@pytest.mark.parametrize("packer", [zipped, tarred, tar_gz])
def test_names_that_lead_out_are_refused(packer: Callable[[Files], bytes], name: str) -> None:
    content = packer([(name, NOISE), ("b.png", NOISE)])
    assert read(content) == [(name, "UnsafePath"), ("b.png", NOISE)]
    assert errors(content) == {name: "UnsafePath"}


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
def test_folders_are_left_out_and_empty_files_refused(packer: Callable[[Files], bytes], tmp_path: Path) -> None:
    assert read(packer([("a/empty.png", b""), ("a/b.png", NOISE)])) == [
        ("a/empty.png", "EmptyImage"),
        ("a/b.png", NOISE),
    ]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("folder")
    assert read((tmp_path / "a.zip").read_bytes()) == []
    (tmp_path / "folder").mkdir()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "folder", "folder")
    assert read((tmp_path / "a.tar").read_bytes()) == []


@pytest.mark.parametrize("packer", [zipped, tarred, tar_gz])
def test_of_two_members_with_one_name_the_first_is_read(packer: Callable[[Files], bytes]) -> None:
    content = packer([("a.png", NOISE), ("a.png", b"other")])
    assert read(content) == [("a.png", NOISE), ("a.png", "DuplicateName")]
    assert list(open_members(io.BytesIO(content), ["a.png"])) == [("a.png", NOISE)]


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
@pytest.mark.parametrize("inner", [zipped, tarred, tar_gz])
def test_archives_in_archives_are_refused(packer: Callable[[Files], bytes], inner: Callable[[Files], bytes]) -> None:
    content = packer([("a.bin", inner([("b.png", NOISE)])), ("c.nii.gz", gzip.compress(NOISE))])
    assert read(content) == [("a.bin", "NestedArchive"), ("c.nii.gz", gzip.compress(NOISE))]


def test_members_that_need_a_password_are_refused() -> None:
    content = bytearray(zipped([("a.png", NOISE), ("b.png", NOISE)]))
    directory = content.index(b"PK\1\2")
    content[6] |= 1
    content[directory + 8] |= 1
    assert read(bytes(content)) == [("a.png", "EncryptedMember"), ("b.png", NOISE)]
    assert read(bytes(content[:directory]))[:2] == [("a.png", "EncryptedMember"), ("b.png", NOISE)]


def test_compression_methods_that_are_not_read_are_named() -> None:
    content = bytearray(zipped([("a.png", NOISE), ("b.png", NOISE)]))
    directory = content.index(b"PK\1\2")
    content[8:10] = content[directory + 10 : directory + 12] = struct.pack("<H", 9)  # deflate64
    (_, refused), (_, good) = open_members(io.BytesIO(content))
    assert isinstance(refused, RefusedMember) and refused.error == "Unsupported" and "method 9" in refused.message
    assert good == NOISE


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_zip_are_read(method: int) -> None:
    assert read(zipped([("a.png", NOISE)], method)) == [("a.png", NOISE)]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_wrong_checksum_is_told_of_its_member_alone(method: int) -> None:
    content = bytearray(zipped([("a.png", NOISE), ("b.png", NOISE)], method))
    content[40] ^= 255
    assert read(bytes(content)) == [("a.png", "DamagedMember"), ("b.png", NOISE)]


def test_a_wrong_checksum_of_gzip_is_told_at_the_end() -> None:
    content = bytearray(tar_gz([("a.png", NOISE)]))
    content[-8] ^= 255
    assert read(bytes(content)) == [("a.png", NOISE), ("", "Truncated")]


def test_links_and_devices_are_refused() -> None:
    buffer = io.BytesIO()
    kinds = {
        "link.png": tarfile.SYMTYPE,
        "hard.png": tarfile.LNKTYPE,
        "fifo": tarfile.FIFOTYPE,
        "null": tarfile.CHRTYPE,
        "disk": tarfile.BLKTYPE,
    }
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert errors(buffer.getvalue()) == {
        "link.png": "Link",
        "hard.png": "Link",
        "fifo": "SpecialFile",
        "null": "SpecialFile",
        "disk": "SpecialFile",
    }
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    zip_buffer = io.BytesIO()
    with zipfile.ZipFile(zip_buffer, "w") as zip_archive:
        zip_archive.writestr(link, "/etc/passwd")
    assert read(zip_buffer.getvalue()) == [("link.png", "Link")]


def test_names_are_read_in_the_encodings_of_zip_programs() -> None:
    """UTF-8 with the flag, UTF-8 without it, as older programs write it, and code page 437."""
    raw = {
        "Müller.png": "Müller.png".encode(),
        "Muller.png": b"Muller.png",
        "M\u00fcler.png": "Müler.png".encode("cp437"),
    }
    for name, encoded in raw.items():
        placeholder = "x" * len(encoded)
        content = zipped([(placeholder, NOISE)]).replace(placeholder.encode(), encoded)
        assert read(content) == [(name, NOISE)]
        assert read(content[: content.index(b"PK\1\2")])[0] == (name, NOISE)
    assert read(zipped([("李.png", NOISE)])) == [("李.png", NOISE)]


def test_a_name_that_is_no_utf_8_in_spite_of_its_flag_costs_only_the_directory() -> None:
    content = zipped([("ü.png", NOISE), ("b.png", NOISE)]).replace("ü".encode(), b"\xff\xff")
    assert [part for _, part in read(content)] == [NOISE, NOISE, "Truncated"]


def test_names_of_a_tar_that_are_no_utf_8_are_in_url_encoding() -> None:
    content = tarred([("M\udcfcller.png", NOISE)], form=tarfile.GNU_FORMAT)
    assert read(content) == [("M%FCller.png", NOISE)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_forms_of_tar_are_read(form: int) -> None:
    name = "/".join(["folder"] * 13) + "/a.png" if form == tarfile.USTAR_FORMAT else "long" * 60 + ".png"
    assert read(tarred([(name, NOISE)], form=form)) == [(name, NOISE)]


def test_long_sizes_in_extra_fields_are_read_without_a_directory() -> None:
    """As programs write that do not know beforehand whether a member gets longer than 4 GiB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "b.png"):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                file.write(NOISE)
    content = buffer.getvalue()
    assert read(content) == [("a.png", NOISE), ("b.png", NOISE)]
    cut = content[: content.index(b"PK\1\2")]
    assert read(cut) == [("a.png", NOISE), ("b.png", NOISE), ("", "Truncated")]


def test_folders_of_windows_are_left_out() -> None:
    assert read(zipped([("scans\\", b""), ("scans\\a.png", NOISE)])) == [("scans\\a.png", NOISE)]


def test_memory_does_not_grow_with_the_members_of_a_tar() -> None:
    content = tarred((f"{index}.png", b"x") for index in range(2000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in members(io.BytesIO(content))) == 2000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_members_that_are_not_there_are_told() -> None:
    found = dict(open_members(io.BytesIO(zipped([("a.png", NOISE)])), ["b.png", "a.png"]))
    refused = found["b.png"]
    assert found["a.png"] == NOISE and isinstance(refused, RefusedMember) and refused.error == "Missing"


def test_the_kind_of_an_archive_is_told_by_its_bytes() -> None:
    assert {name: container_kind(packer([("a.png", NOISE)])[:FIRST_BYTES]) for name, packer in PACKERS.items()} == {
        "zip": "zip",
        "streamed zip": "zip",
        "tar": "tar",
        "tar.gz": "tar.gz",
    }
    assert container_kind(zipped([])) == "zip" and read(zipped([])) == []
    for content in (b"", b"\x89PNG\r\n\x1a\n", gzip.compress(NOISE), zlib.compress(NOISE), bytes(1024), b"DICM" * 200):
        assert container_kind(content) is None
    assert container_kind(b"7z\xbc\xaf\x27\x1c\0") == "7z"
    assert read(b"7z\xbc\xaf\x27\x1c\0") == [("", "Unsupported")]


def test_no_message_holds_a_name(tmp_path: Path) -> None:
    for packer in (zipped, tarred, tar_gz):
        content = packer([("../SMITH^JOHN.png", NOISE), ("SMITH^JANE.zip", zipped([("a", b"a")])), ("SMITH.png", b"")])
        found = [part for _, part in open_members(io.BytesIO(content))]
        assert len(found) == 3 and all(
            isinstance(part, RefusedMember) and "SMITH" not in part.message for part in found
        )


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
def test_an_archive_in_object_storage_is_read_in_blocks(packer: Callable[[Files], bytes]) -> None:
    """Of a zip and a tar, what is not asked for is not read."""
    location = locate("memory://containers/archive", StorageSection())
    files = [(f"{index}.png", bytes([index]) * 1000) for index in range(1, 5)]
    location.write(packer(files))
    with location.open() as stream:
        assert dict(open_members(stream, ["2.png", "4.png"])) == {"2.png": files[1][1], "4.png": files[3][1]}
