"""What the readers of archives have in common: members, refusals, and bounds against decompression bombs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Args:
        name: as the archive has it, valid UTF-8. It identifies the member and is no path: nothing is written there.
        size: bytes of the file, as the archive says.
        compressed: bytes that it takes in the archive; None where it is compressed together with others.
        offset: of its header, in bytes from the start of the archive; in a tar.gz, of the unpacked archive.
    """

    name: str
    size: int
    compressed: int | None
    offset: int


@dataclass(frozen=True)
class RefusedMember:
    """A member that cannot be read, or the part of an archive that cannot.

    Args:
        name: as of a member; empty where it stands for the rest of the archive.
        error: class of the error.
        message: what is wrong and the mend, without a name.
    """

    name: str
    error: str
    message: str


class MemberError(Exception):
    """The content of a member cannot be read.

    Args:
        error: class of the error.
        message: what is wrong and the mend, without a name.
    """

    def __init__(self, error: str, message: str):
        super().__init__(message)
        self.error = error


@dataclass(frozen=True)
class Entry:
    """A member, and how its content is read, which must be before the next entry is taken.

    Args:
        member: what the archive says of it.
        read: returns the content, at most ``member.size`` bytes; raises MemberError.
    """

    member: Member
    read: Callable[[], bytes]


EntryReader = Callable[[BinaryIO], Iterator[Entry | RefusedMember]]
"""From an archive to its entries in their order, without folders."""

TRUNCATED = ("Truncated", "the archive is cut off or damaged; what lies behind that place is lost, copy it again")
"""Error class and message of an archive whose rest cannot be read."""
DAMAGED = ("DamagedMember", "the member is damaged: its checksum or its compressed data are wrong; copy it again")
"""Error class and message of a member whose content is not what was packed."""


@dataclass(frozen=True)
class Limits:
    """Bounds against decompression bombs. Memory holds one member at a time, so that ``member_bytes`` bounds it.

    A blank image may be a thousandth of its size when compressed. The ratio is therefore compared only where much is
    unpacked.

    Args:
        member_bytes: most bytes of a member.
        archive_bytes: most bytes of all members.
        ratio: most bytes for each byte in the archive.
        ratio_from: bytes of a member from which its ratio is compared.
        archive_ratio_from: bytes of all members so far from which their ratio is compared.
    """

    member_bytes: int = 4 << 30
    archive_bytes: int = 1 << 40
    ratio: int = 200
    ratio_from: int = 64 << 20
    archive_ratio_from: int = 4 << 30

    def refuse_member(self, member: Member) -> str | None:
        """What is wrong with the size of a member, and the mend; None if nothing is."""
        if member.size > self.member_bytes:
            return (
                f"it unpacks to {member.size} bytes, the limit is {self.member_bytes}; unpack it by hand if it is good"
            )
        packed = member.compressed
        if packed is not None and member.size > self.ratio_from and member.size > self.ratio * packed:
            return (
                f"{packed} bytes unpack to {member.size}, as of a decompression bomb; unpack it by hand if it is good"
            )
        return None

    def refuse_archive(self, unpacked: int, packed: int) -> str | None:
        """What is wrong with the size of an archive, and the mend; None if nothing is.

        Args:
            unpacked: bytes of the members so far, as the archive says.
            packed: bytes of the archive.
        """
        if unpacked > self.archive_bytes:
            return f"it unpacks to more than {self.archive_bytes} bytes; the rest is left out, split it if it is good"
        if unpacked > self.archive_ratio_from and unpacked > self.ratio * packed:
            return (
                f"{packed} bytes unpack to more than {self.ratio} times as many, as of a decompression bomb;"
                " the rest is left out, unpack it by hand if it is good"
            )
        return None


DEFAULT_LIMITS = Limits()
"""Bounds that no archive of medical images should meet."""
