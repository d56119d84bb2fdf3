"""Archives that unpack to too much, or claim so, cost neither memory nor the rest."""

import io
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable

import pytest

from medfocus.pipeline.ingest.containers import Limits
from tests.pipeline.ingest.archives import NOISE, PACKERS, Files, errors, read, tarred, zipped


def zeros_zip(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros.png", "w") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.close()
        archive.writestr("good.png", NOISE)
    return buffer.getvalue()


def test_a_bomb_is_refused_from_its_sizes_before_it_is_unpacked() -> None:
    content = zeros_zip(80 << 20)
    tracemalloc.start()
    try:
        assert read(content) == [("zeros.png", "DecompressionBomb"), ("good.png", NOISE)]
        assert errors(content) == {"zeros.png": "DecompressionBomb"}
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_that_lies_about_its_size_takes_no_memory() -> None:
    content = bytearray(zeros_zip(80 << 20))
    directory = content.index(b"PK\1\2")
    content[22:26] = content[directory + 24 : directory + 28] = struct.pack("<I", 1000)
    tracemalloc.start()
    try:
        assert read(bytes(content)) == [("zeros.png", "DamagedMember"), ("good.png", NOISE)]
        assert read(bytes(content[:directory]))[0] == ("zeros.png", "DamagedMember")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS.keys())
def test_bounds_hold_for_a_member_and_for_an_archive(packer: Callable[[Files], bytes]) -> None:
    content = packer([(f"{index}.png", NOISE) for index in range(4)])
    assert [part for _, part in read(content, Limits(member_bytes=100))] == ["DecompressionBomb"] * 4
    assert [name for name, _ in read(content, Limits(archive_bytes=2 * len(NOISE)))] == ["0.png", "1.png", ""]
    zeros = packer([(f"{index}.png", bytes(1 << 20)) for index in range(4)])
    found = read(zeros, Limits(archive_ratio_from=0))
    assert found == [("", "DecompressionBomb")] or packer is tarred


def test_members_on_top_of_each_other_are_refused() -> None:
    """Two entries of the directory name the same data."""
    content = zipped([("a.png", NOISE)])
    start, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry = content[start:end]
    body = content[:start] + entry + entry.replace(b"a.png", b"b.png")
    size = 2 * len(entry)
    doubled = body + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, size, start, 0)
    assert read(doubled) == [("a.png", NOISE), ("b.png", "DamagedMember")]


def test_a_header_that_claims_a_long_name_takes_no_memory() -> None:
    info = tarfile.TarInfo("a.png")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    tracemalloc.start()
    try:
        assert read(info.tobuf(tarfile.USTAR_FORMAT) + NOISE) == [("", "Truncated")]
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
