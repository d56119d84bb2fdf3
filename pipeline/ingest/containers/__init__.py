"""Reads archives of files: zip, tar and tar.gz, member by member, in their order and without a copy on disk.

What cannot be read of an archive is told as a ``RefusedMember``, and the rest is read. Errors of the storage that the
archive lies in are raised.
"""

import re
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

from medfocus.pipeline.ingest.containers import tar_file, zip_file
from medfocus.pipeline.ingest.containers.member import (
    DEFAULT_LIMITS,
    Entry,
    EntryReader,
    Limits,
    Member,
    MemberError,
    RefusedMember,
)

__all__ = ["FIRST_BYTES", "Limits", "Member", "RefusedMember", "container_kind", "members", "open_members"]

FIRST_BYTES = 4096
"""Bytes of a file that ``container_kind`` needs; fewer are enough where the file has fewer."""
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP = b"\x1f\x8b\x08"
_READERS: dict[str, EntryReader] = {"zip": zip_file.read_zip, "tar": tar_file.read_tar, "tar.gz": tar_file.read_tar_gz}
# Archives and compressed files that are known and not read.
_NOT_READ = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_EMPTY = ("EmptyImage", "the file is empty; copy it again")
_UNSAFE = ("UnsafePath", "its name leads out of the archive; pack it again with relative names")
_DUPLICATE = ("DuplicateName", "an earlier member of the archive has the same name; rename one of them")
_MISSING = ("Missing", "the archive does not have it, or is cut off before it; copy the archive again")
_NESTED = "it is an archive ({}) in an archive, or a document that is stored as one; unpack it, and pack the files"


def container_kind(first: bytes) -> str | None:
    """The kind of archive that a file is, by its first bytes.

    Args:
        first: the first ``FIRST_BYTES`` of the file.

    Returns:
        ``zip``, ``tar`` or ``tar.gz``, which are read; ``7z``, ``rar``, ``bzip2``, ``xz`` or ``zstd``, which are not;
        None for any other file, also for one that is compressed with gzip alone.
    """
    if first.startswith(_ZIP):
        return "zip"
    if tar_file.is_header(first[: tar_file.BLOCK]):
        return "tar"
    if first.startswith(_GZIP) and tar_file.is_header(_unpack(first, tar_file.BLOCK)):
        return "tar.gz"
    return next((kind for signature, kind in _NOT_READ.items() if first.startswith(signature)), None)


def _unpack(first: bytes, most: int) -> bytes:
    """The first bytes of what is compressed with gzip."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(first, most)
    except zlib.error:
        return b""


def members(stream: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Iterator[Member | RefusedMember]:
    """List an archive in its order; folders are left out.

    Of a zip the directory is read, of a tar the headers, and of a tar.gz everything.

    Args:
        stream: the archive, which can be positioned.
        limits: bounds against decompression bombs.

    Yields:
        A member, or what is refused and why. The refusal of the rest of an archive has no name.
    """
    for entry in _entries(stream, limits):
        yield entry if isinstance(entry, RefusedMember) else entry.member


def open_members(
    stream: BinaryIO, names: Collection[str] | None = None, limits: Limits = DEFAULT_LIMITS
) -> Iterator[tuple[str, bytes | RefusedMember]]:
    """Read members of an archive, one at a time, in the order of the archive.

    A tar.gz is unpacked from its start to the last of the names: read it in one call.

    Args:
        stream: the archive, which can be positioned.
        names: names of the members to read; None reads all.
        limits: bounds against decompression bombs.

    Yields:
        The name of a member, and its content or why it is refused. Each of ``names`` comes once. Where all are read,
        the refusal of the rest of an archive comes under an empty name.
    """
    wanted = None if names is None else set(names)
    for entry in _entries(stream, limits) if wanted is None or wanted else ():
        name = entry.name if isinstance(entry, RefusedMember) else entry.member.name
        if wanted is not None:
            if name not in wanted:
                continue
            wanted.remove(name)
        yield name, entry if isinstance(entry, RefusedMember) else _read(entry)
        if wanted is not None and not wanted:
            return
    for name in sorted(wanted or ()):
        yield name, RefusedMember(name, *_MISSING)


def _entries(stream: BinaryIO, limits: Limits) -> Iterator[Entry | RefusedMember]:
    """The entries of an archive, with the refusals that do not depend on its format."""
    packed = stream.seek(0, 2)
    stream.seek(0)
    kind = container_kind(stream.read(FIRST_BYTES))
    if kind not in _READERS:
        yield RefusedMember("", "Unsupported", f"archives of the kind {kind} are not read; pack it again as zip or tar")
        return
    stream.seek(0)
    taken: set[str] = set()
    unpacked = 0
    for entry in _READERS[kind](stream):
        if isinstance(entry, RefusedMember):
            yield entry
            continue
        member = entry.member
        unpacked += member.size
        if message := limits.refuse_archive(unpacked, packed):
            yield RefusedMember("", "DecompressionBomb", message)
            return
        yield _refusal(member, taken, limits) or entry
        taken.add(member.name)


def _refusal(member: Member, taken: Collection[str], limits: Limits) -> RefusedMember | None:
    """Why a member is not read, by its name and sizes; None if it is."""
    if _leads_out(member.name):
        return RefusedMember(member.name, *_UNSAFE)
    if member.name in taken:
        return RefusedMember(member.name, *_DUPLICATE)
    if not member.size:
        return RefusedMember(member.name, *_EMPTY)
    if message := limits.refuse_member(member):
        return RefusedMember(member.name, "DecompressionBomb", message)
    return None


def _leads_out(name: str) -> bool:
    """Whether a name is that of no file below a folder, in Unix or in Windows."""
    parts = re.split(r"[/\\]", name)
    return ".." in parts or parts[0] == "" or re.match("[A-Za-z]:", name) is not None


def _read(entry: Entry) -> bytes | RefusedMember:
    """The content of a member."""
    try:
        content = entry.read()
    except MemberError as error:
        return RefusedMember(entry.member.name, error.error, str(error))
    kind = container_kind(content[:FIRST_BYTES])
    return content if kind is None else RefusedMember(entry.member.name, "NestedArchive", _NESTED.format(kind))
