"""Reads tar archives, plain or compressed with gzip, by ``tarfile``."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast
from urllib.parse import quote

from medfocus.pipeline.ingest.containers.member import DAMAGED, TRUNCATED, Entry, Member, MemberError, RefusedMember

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a block, and of a header."""
# Bytes of a member that are read at once.
_CHUNK = 1 << 20
# Most bytes that tarfile may read at once, which it does for long names and extended headers.
_MOST_AT_ONCE = 4 << 20
_BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError)
_LINK = ("Link", "it is a link to another file, which is not followed; pack the file itself")
_SPECIAL = ("SpecialFile", "it is a device or a pipe, not a file; leave it out")
_SPARSE = ("Unsupported", "it is stored as a sparse file; pack it again without --sparse")


def is_header(block: bytes) -> bool:
    """Whether a block of 512 bytes is the header of a tar's member, by its checksum."""
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def read_tar(stream: BinaryIO) -> Iterator[Entry | RefusedMember]:
    """Read a tar; members that are not asked for are skipped by their position."""
    yield from _entries(stream, compressed=False)


def read_tar_gz(stream: BinaryIO) -> Iterator[Entry | RefusedMember]:
    """Read a tar that is compressed with gzip, from its start to its end."""
    stream.seek(0)
    with gzip.GzipFile(fileobj=stream) as unpacked:
        yield from _entries(cast(BinaryIO, unpacked), compressed=True)


def _entries(stream: BinaryIO, compressed: bool) -> Iterator[Entry | RefusedMember]:
    try:
        reads = _ShortReads(stream)
        with tarfile.open(fileobj=cast(BinaryIO, reads), mode="r:", errors="surrogateescape") as archive:
            place = -1
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # they would all stay in memory
                if info.size < 0 or info.offset <= place:  # a damaged header may lead back, again and again
                    yield RefusedMember("", *TRUNCATED)
                    return
                place = info.offset
                if not info.isdir():
                    yield _entry(archive, info, compressed)
            if len(reads.last) < BLOCK or any(reads.last):  # tarfile also stops at a damaged header
                yield RefusedMember("", *TRUNCATED)
            while stream.read(_CHUNK):  # gzip compares its checksum at the end
                pass
    except _BROKEN:
        yield RefusedMember("", *TRUNCATED)


def _entry(archive: tarfile.TarFile, info: tarfile.TarInfo, compressed: bool) -> Entry | RefusedMember:
    name = _name(info.name)
    if info.issym() or info.islnk():
        return RefusedMember(name, *_LINK)
    if not info.isreg():
        return RefusedMember(name, *_SPECIAL)
    if info.issparse():
        return RefusedMember(name, *_SPARSE)
    member = Member(name, info.size, None if compressed else info.size, info.offset)
    return Entry(member, lambda: _read(archive, info))


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """The content of a member; raises MemberError."""
    content = io.BytesIO()
    try:
        file = archive.extractfile(info)
        while file is not None and (part := file.read(_CHUNK)):
            content.write(part)
    except (tarfile.TarError, EOFError) as error:
        raise MemberError(*TRUNCATED) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise MemberError(*DAMAGED) from error
    if content.tell() < info.size:
        raise MemberError(*TRUNCATED)
    return content.getvalue()


def _name(name: str) -> str:
    """A name that is valid UTF-8; in URL encoding where it is not UTF-8 in the archive."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return quote(name.encode("utf-8", "surrogateescape"))
    return name


class _ShortReads:
    """A stream that refuses to read much at once: a header may claim any size of itself, and tarfile believes it.

    Attributes:
        last: what was read last.
    """

    def __init__(self, stream: BinaryIO):
        self.stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError("a header is longer than any real one")
        self.last = self.stream.read(size)
        return self.last

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
