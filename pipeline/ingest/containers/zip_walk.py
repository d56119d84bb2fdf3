"""Reads a zip that has lost its directory: each member by its own header, up to the damage (APPNOTE.TXT 6.3.10)."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from medfocus.pipeline.ingest.containers.member import DAMAGED, TRUNCATED, Entry, Member, MemberError, RefusedMember

ENCRYPTED_BIT = 1 << 0
"""Flag of a member that is encrypted."""
ENCRYPTED = ("EncryptedMember", "it is encrypted; unpack it with its password, and pack the files")
"""Error class and message of a member that needs a password."""
_SIZES_FOLLOW = 1 << 3
_HEADER = struct.Struct("<4s5H3I2H")
_SIGNATURE, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_STORED, _DEFLATED = 0, 8
# The size of a member whose sizes are in an extra field with the number 1.
_IN_EXTRA = 0xFFFFFFFF
_CHUNK = 1 << 20


def decode_name(raw: bytes) -> str:
    """The name of a member from its bytes: UTF-8 where that is valid, else code page 437."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp437")


def unsupported(method: int) -> tuple[str, str]:
    """Error class and message of a compression method that is not read."""
    return "Unsupported", f"its compression method {method} is not read; pack it again with deflate"


@dataclass(frozen=True)
class _Header:
    """A member by its own header: offsets from the start of the archive, and its sizes, which may follow the data."""

    offset: int
    name: str
    flags: int
    method: int
    checksum: int
    start: int
    compressed: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.compressed


def walk(stream: BinaryIO) -> Iterator[Entry | RefusedMember]:
    """Yield the members that are whole, without folders; the one that is cut off is refused."""
    total = stream.seek(0, 2)
    offset = 0
    while (header := _read_header(stream, offset)) is not None:
        offset = header.end
        if header.flags & _SIZES_FOLLOW:
            sized = _with_sizes(stream, header)
            if sized is None:
                yield RefusedMember(header.name, *TRUNCATED)
                return
            header, offset = sized
        if header.end > total:
            yield RefusedMember(header.name, *TRUNCATED)
            return
        if not header.name.endswith("/"):
            yield _entry(stream, header)


def _read_header(stream: BinaryIO, offset: int) -> _Header | None:
    """The header at an offset; None if there is no whole one."""
    stream.seek(offset)
    fixed = stream.read(_HEADER.size)
    if len(fixed) < _HEADER.size or not fixed.startswith(_SIGNATURE):
        return None
    _, _, flags, method, _, _, checksum, compressed, size, name_bytes, extra_bytes = _HEADER.unpack(fixed)
    rest = stream.read(name_bytes + extra_bytes)
    if len(rest) < name_bytes + extra_bytes:
        return None
    if _IN_EXTRA in (compressed, size):
        size, compressed = _long_sizes(rest[name_bytes:]) or (size, compressed)
    start = offset + len(fixed) + len(rest)
    return _Header(offset, decode_name(rest[:name_bytes]), flags, method, checksum, start, compressed, size)


def _long_sizes(extra: bytes) -> tuple[int, int] | None:
    """Size and compressed size in the extra fields of a header; None if they are not there."""
    while len(extra) >= 4:
        number, length = struct.unpack_from("<HH", extra)
        if number == 1 and length >= 16 and len(extra) >= 20:
            size, compressed = struct.unpack_from("<QQ", extra, 4)
            return size, compressed
        extra = extra[4 + length :]
    return None


def _with_sizes(stream: BinaryIO, header: _Header) -> tuple[_Header, int] | None:
    """The header of a member whose sizes follow its data, and the offset behind them; None if they cannot be found."""
    if header.flags & ENCRYPTED_BIT or header.method != _DEFLATED:
        return None
    stream.seek(header.start)
    decoder, size, read = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while not decoder.eof:
        part = decoder.unconsumed_tail
        if not part:
            part = stream.read(_CHUNK)
            read += len(part)
        if not part:
            return None
        try:
            size += len(decoder.decompress(part, _CHUNK))
        except zlib.error:
            return None
    compressed = read - len(decoder.unused_data)
    stream.seek(header.start + compressed)
    descriptor = stream.read(24 + len(_SIGNATURE))
    signed = len(_DESCRIPTOR) if descriptor.startswith(_DESCRIPTOR) else 0
    if len(descriptor) < signed + 12:
        return None
    (checksum,) = struct.unpack_from("<I", descriptor, signed)
    # Sizes of 4 bytes each, or of 8 where the next header or the directory is behind those.
    length = signed + (20 if descriptor[signed + 20 : signed + 22] == _SIGNATURE[:2] else 12)
    sized = replace(header, checksum=checksum, compressed=compressed, size=size)
    return sized, sized.end + length


def _entry(stream: BinaryIO, header: _Header) -> Entry | RefusedMember:
    if header.flags & ENCRYPTED_BIT:
        return RefusedMember(header.name, *ENCRYPTED)
    if header.method not in (_STORED, _DEFLATED):
        return RefusedMember(header.name, *unsupported(header.method))
    member = Member(header.name, header.size, header.compressed, header.offset)
    return Entry(member, lambda: _read(stream, header))


def _read(stream: BinaryIO, header: _Header) -> bytes:
    """The content of a member; raises MemberError."""
    stream.seek(header.start)
    content = stream.read(header.compressed)
    if header.method == _DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, header.size or 1)
        except zlib.error as error:
            raise MemberError(*DAMAGED) from error
    if len(content) != header.size or zlib.crc32(content) != header.checksum:
        raise MemberError(*DAMAGED)
    return content
