"""The images of a source, found by their bytes, each under its own ``image_id``; and what cannot be used."""

import mimetypes
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data.local_tree import Entry, Kind, encoded
from medfocus.pipeline.data.storage import AccessError, Location, ServiceError, StorageError
from medfocus.stages.decode import media_type_of

# Files with these suffixes are taken for images; of others the first bytes decide.
SUFFIXES = frozenset(
    {
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jif",
        ".mpo",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".gif",
        ".webp",
    }
    | {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
)
# What file managers, archivers, version control and storage leave behind; hidden names, with a dot in front, beside it.
_JUNK = frozenset(
    {"__macosx", "$recycle.bin", "recycler", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
)
# Bytes that are read of a file to tell whether it is an image. The headers of these formats may be longer than that.
_FIRST_BYTES = 4096
_LONG_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Reads of small objects wait for the network, not for a processor.
_READERS = 16
# Seconds before another try, beyond those that an S3 client makes by itself; and what no other try would mend.
_PAUSES = (1.0, 5.0, 15.0)
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
_IMAGING_SUFFIXES = frozenset(
    {".dcm", ".nii", ".gz", ".mha", ".mhd", ".nrrd", ".npy", ".npz", ".heic", ".avif", ".svs"}
)


# Error class and message of a file without bytes.
EMPTY = ("EmptyImage", "the file is empty; copy it again")


@dataclass(frozen=True)
class SourceFile:
    """An image of the source.

    Args:
        image_id: unique in the source, and valid UTF-8 in NFC.
        path: bytes of its place below the source.
        size: its bytes.
    """

    image_id: str
    path: bytes
    size: int


@dataclass(frozen=True)
class Refusal:
    """What cannot be packed: a row of the quarantine."""

    image_id: str
    source_uri: str
    error: str
    message: str


@dataclass
class Source:
    """What a source holds.

    Args:
        images: in order of their ``image_id``.
        refused: what cannot be used.
        left_out: files that are no images, by suffix.
        junk: files and folders of systems and tools, by name.
        repeated: links to what has another name in the source.
    """

    images: list[SourceFile] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    junk: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def log(self) -> None:
        """Log what is not packed, in counts."""
        if self.junk:
            log.info("%d files and folders of systems and tools are left out: %s", self.junk.total(), _shown(self.junk))
        if self.repeated:
            log.info("%d links to what is there under another name are left out", self.repeated)
        if self.left_out:
            log.warning(
                "%d files are no images by their bytes and are left out: %s",
                self.left_out.total(),
                _shown(self.left_out),
            )

    def described(self) -> str:
        """What it holds beside images, in counts."""
        errors = Counter(refusal.error for refusal in self.refused)
        counts = self.left_out + errors + (Counter({"junk": self.junk.total()}) if self.junk else Counter())
        return _shown(counts) or "nothing is there"


def find_images(origin: Location) -> Source:
    """Find the images below a folder or prefix.

    An ``image_id`` is the file's place below the source in NFC. A name that is not UTF-8, or that equals an earlier one
    but for its Unicode form, is in URL encoding.

    Raises:
        StorageError: the source cannot be read.
    """
    source = Source()
    images: list[Entry] = []
    others: list[Entry] = []
    for entry in origin.walk(is_junk):
        if entry.kind is Kind.SKIPPED:
            source.junk[_junk_name(entry.name)] += 1
        elif entry.kind is Kind.REPEATED:
            source.repeated += 1
        elif entry.kind is Kind.TROUBLE:
            source.refused.append(_refusal(origin, entry, entry.error, entry.message))
        elif _suffix(entry.name) in SUFFIXES:
            images.append(entry)
        else:
            others.append(entry)
    with ThreadPoolExecutor(_READERS) as readers:
        for entry, seen in zip(others, readers.map(lambda entry: _look(origin, entry), others), strict=True):
            if isinstance(seen, Refusal):
                source.refused.append(seen)
            elif seen:
                images.append(entry)
            else:
                source.left_out[_shown_suffix(entry.name)] += 1
    _name(source, origin, images)
    return source


def is_junk(name: str) -> bool:
    """Whether a part of a path is one that systems and tools leave behind."""
    return name.casefold() in _JUNK or (name.startswith(".") and name not in (".", ".."))


def _look(origin: Location, entry: Entry) -> bool | Refusal:
    """Whether the first bytes of a file are those of an image."""
    if not entry.size:
        return False
    try:
        first = read_patiently(origin / entry.name, _FIRST_BYTES)
    except (AccessError, ServiceError):
        raise
    except StorageError as error:
        return _refusal(origin, entry, "Unreadable", reason(error, origin / entry.name))
    return first.startswith(_LONG_HEADERS) or media_type_of(first) is not None


def read_patiently(location: Location, most: int | None = None) -> bytes:
    """The content of a file, or at most its first bytes; a transient failure is tried again."""
    for pause in _PAUSES:
        try:
            return location.read(most)
        except AccessError:
            raise
        except StorageError as error:
            if isinstance(error.__cause__, _LASTING):
                raise
            time.sleep(pause)
    return location.read(most)


def reason(error: StorageError, location: Location) -> str:
    """The message of an error without the name of the file, which may identify a patient."""
    return str(error).removeprefix(f"{location.uri}: ")


def _refusal(origin: Location, entry: Entry, error: str, message: str) -> Refusal:
    return Refusal(_identifier(entry.name), (origin / entry.name).uri, error, message)


def _name(source: Source, origin: Location, entries: Sequence[Entry]) -> None:
    """Give each image an ``image_id``. A name in NFC goes before its like in another form, and keeps itself."""
    taken: set[str] = set()
    for entry in sorted(entries, key=lambda entry: (_identifier(entry.name) != entry.name, entry.name)):
        name = _identifier(entry.name)
        if name in taken:
            name = quote(encoded(entry.name))
        if name in taken:
            message = "another file of the source has the same image_id; rename one of them"
            source.refused.append(Refusal(name, (origin / entry.name).uri, "DuplicateId", message))
        elif not entry.size:
            source.refused.append(Refusal(name, (origin / entry.name).uri, *EMPTY))
        else:
            source.images.append(SourceFile(name, encoded(entry.name), entry.size))
        taken.add(name)
    source.images.sort(key=lambda image: image.image_id)


def _identifier(name: str) -> str:
    raw = encoded(name)
    try:
        return unicodedata.normalize("NFC", raw.decode())
    except UnicodeDecodeError:
        return quote(raw)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _shown_suffix(name: str) -> str:
    """A suffix for the log, if it is one of a kind of file: a name may have an identifier after its last dot."""
    suffix = _suffix(name)
    if not suffix:
        return "no suffix"
    return suffix if suffix in mimetypes.types_map or suffix in _IMAGING_SUFFIXES else "another suffix"


def _junk_name(name: str) -> str:
    """The part of a path that makes it junk, for the log."""
    part = next(part for part in name.split("/") if is_junk(part))
    return part if re.fullmatch(r"[\w$@#+ .]*", part) and part.casefold() in _JUNK else "hidden"


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
