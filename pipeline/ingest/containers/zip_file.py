"""Reads zip archives by ``zipfile``, and those without a directory by their members' headers."""

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from medfocus.pipeline.ingest.containers.member import DAMAGED, TRUNCATED, Entry, Member, MemberError, RefusedMember
from medfocus.pipeline.ingest.containers.zip_walk import ENCRYPTED, ENCRYPTED_BIT, decode_name, unsupported, walk

# Bits of the flags beside ENCRYPTED_BIT: patched, strongly encrypted, directory encrypted.
_PATCHED, _STRONG, _MASKED = 1 << 5, 1 << 6, 1 << 13
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
# Bytes that are read at once. zipfile unpacks as many compressed bytes by the last two methods, however long they get.
_CHUNKS, _SMALL_CHUNK = {zipfile.ZIP_STORED: 1 << 20, zipfile.ZIP_DEFLATED: 1 << 20}, 1 << 12
_UTF_8 = 1 << 11
_UNIX = 3
# What zipfile raises for a directory that is not there, is cut off, or holds names that are no UTF-8.
_NO_DIRECTORY = (zipfile.BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError, ValueError, OverflowError)
_DAMAGE = (EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, UnicodeDecodeError)
_OVERLAP = ("DamagedMember", "it lies on top of another member, as in a decompression bomb; pack the archive again")
_LINK = ("Link", "it is a link to another file, which is not followed; pack the file itself")


def read_zip(stream: BinaryIO) -> Iterator[Entry | RefusedMember]:
    """Read a zip by its directory; where that is lost, by the header of each member up to the damage."""
    try:
        archive = zipfile.ZipFile(stream)
    except _NO_DIRECTORY:
        yield from walk(stream)
        yield RefusedMember("", *TRUNCATED)
        return
    with archive:
        end = 0
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            if not _is_folder(info):
                yield _entry(archive, info) if info.header_offset >= end else RefusedMember(_name(info), *_OVERLAP)
            end = max(end, info.header_offset + info.compress_size)


def _is_folder(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a folder; some programs of Windows end its name with a backslash."""
    return info.is_dir() or (info.filename.endswith("\\") and not info.file_size)


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry | RefusedMember:
    name = _name(info)
    if info.flag_bits & (ENCRYPTED_BIT | _STRONG | _MASKED):
        return RefusedMember(name, *ENCRYPTED)
    if info.compress_type not in _METHODS or info.flag_bits & _PATCHED:
        return RefusedMember(name, *unsupported(info.compress_type))
    if info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16):
        return RefusedMember(name, *_LINK)
    member = Member(name, info.file_size, info.compress_size, info.header_offset)
    return Entry(member, lambda: _read(archive, info))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of a member; raises MemberError."""
    content = io.BytesIO()
    try:
        with archive.open(info) as file:
            while part := file.read(_CHUNKS.get(info.compress_type, _SMALL_CHUNK)):
                content.write(part)
    except _DAMAGE as error:
        raise MemberError(*DAMAGED) from error
    except (NotImplementedError, RuntimeError) as error:  # the member's own header says otherwise than the directory
        raise MemberError(*unsupported(info.compress_type)) from error
    except OSError as error:
        if info.compress_type != zipfile.ZIP_BZIP2:  # bz2 has no class of its own
            raise
        raise MemberError(*DAMAGED) from error
    if content.tell() < info.file_size:
        raise MemberError(*DAMAGED)
    return content.getvalue()


def _name(info: zipfile.ZipInfo) -> str:
    """The name of a member; UTF-8 where it is valid, also without the flag that says so, else code page 437."""
    if info.flag_bits & _UTF_8:
        return info.filename
    return decode_name(info.filename.encode("cp437"))
