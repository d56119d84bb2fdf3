"""Finds the images of a source by their bytes, gives each an ``image_id``, and refuses what cannot be packed."""

import mimetypes
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data.local_tree import Entry, Kind, encoded
from medfocus.pipeline.data.storage import AccessError, Location, ServiceError, StorageError
from medfocus.stages.decode import media_type_of

# Files with these suffixes are images; of others the first bytes decide.
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".gif"}
    | {".webp", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
)
# Files and folders of file managers, archivers, version control and storage. Hidden names (.name) are junk as well.
_JUNK = frozenset(
    {"__macosx", "$recycle.bin", "recycler", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
)
# Bytes that are read to tell whether a file is an image. The headers of these formats may be longer.
_FIRST_BYTES = 4096
_LONG_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Reads of small objects wait for the network, not for a processor.
_READERS = 16
# Seconds before each retry, beside the retries that an S3 client makes by itself.
_PAUSES = (1.0, 5.0, 15.0)
# Causes of a permanent error.
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
# Suffixes of medical and other images that MIME types do not name.
_IMAGING_SUFFIXES = frozenset(
    {".dcm", ".nii", ".gz", ".mha", ".mhd", ".nrrd", ".npy", ".npz", ".heic", ".avif", ".svs"}
)
# Error class and message of a file without bytes.
EMPTY = ("EmptyImage", "the file is empty; copy it again")


@dataclass(frozen=True)
class SourceFile:
    """An image of the source.

    Args:
        image_id: unique in the source; valid UTF-8 in NFC.
        path: path below the source, as bytes.
        size: size in bytes.
    """

    image_id: str
    path: bytes
    size: int


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be packed: a row of the quarantine.

    Args:
        image_id: as of an image; need not be unique.
        source_uri: where the file is.
        error: class of the error.
        message: what is wrong, without the name of the file.
    """

    image_id: str
    source_uri: str
    error: str
    message: str


@dataclass
class Source:
    """The content of a source.

    Args:
        images: in order of their ``image_id``.
        refused: files and folders that cannot be packed.
        left_out: number of files that are no images, by suffix.
        junk: number of files and folders of systems and tools, by name.
        repeated: number of links to files that have another name in the source.
    """

    images: list[SourceFile] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    junk: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def log(self) -> None:
        """Log counts of what is not packed."""
        if self.junk:
            names = _format_counts(self.junk)
            log.info("%d files and folders of systems and tools are left out: %s", self.junk.total(), names)
        if self.repeated:
            log.info("%d links to files that have another name here are left out", self.repeated)
        if self.left_out:
            log.warning(
                "%d files are no images by their bytes and are left out: %s",
                self.left_out.total(),
                _format_counts(self.left_out),
            )

    def format_rest(self) -> str:
        """Counts of what the source holds beside images, as a text."""
        errors = Counter(refusal.error for refusal in self.refused)
        counts = self.left_out + errors + (Counter({"junk": self.junk.total()}) if self.junk else Counter())
        return _format_counts(counts) or "nothing is there"


def find_images(origin: Location) -> Source:
    """Find the images below a folder or prefix.

    An ``image_id`` is the path below the source in NFC. It is in URL encoding where the path is not UTF-8, or where it
    differs from an earlier one by its Unicode form only.

    Args:
        origin: the folder or prefix.

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
        results = readers.map(lambda entry: _is_image(origin, entry), others)
        for entry, result in zip(others, results, strict=True):
            if isinstance(result, Refusal):
                source.refused.append(result)
            elif result:
                images.append(entry)
            else:
                source.left_out[_safe_suffix(entry.name)] += 1
    _assign_ids(source, origin, images)
    return source


def is_junk(name: str) -> bool:
    """Whether a part of a path is the name of a file or folder of systems and tools."""
    return name.casefold() in _JUNK or (name.startswith(".") and name not in (".", ".."))


def _is_image(origin: Location, entry: Entry) -> bool | Refusal:
    """Whether the first bytes of a file are those of an image; a refusal where they cannot be read."""
    if not entry.size:
        return False
    try:
        first = read_with_retries(origin / entry.name, _FIRST_BYTES)
    except (AccessError, ServiceError):
        raise
    except StorageError as error:
        return _refusal(origin, entry, "Unreadable", reason(error, origin / entry.name))
    return first.startswith(_LONG_HEADERS) or media_type_of(first) is not None


def read_with_retries(location: Location, most: int | None = None) -> bytes:
    """Read a file, with retries after transient errors.

    Args:
        location: of the file.
        most: number of bytes to read; None reads all.

    Raises:
        AccessError: storage refuses the credentials.
        StorageError: the error is permanent, or remains after all retries.
    """
    return _RETRIES(location.read, most)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, AccessError) or isinstance(error.__cause__, _PERMANENT):
        return False
    return isinstance(error, StorageError)


_RETRIES = Retrying(
    retry=retry_if_exception(_is_transient),
    wait=wait_chain(*map(wait_fixed, _PAUSES)),
    stop=stop_after_attempt(len(_PAUSES) + 1),
    reraise=True,
)


def reason(error: StorageError, location: Location) -> str:
    """The message of an error without the name of the file, which may identify a patient."""
    return str(error).removeprefix(f"{location.uri}: ")


def _refusal(origin: Location, entry: Entry, error: str, message: str) -> Refusal:
    return Refusal(_identifier(entry.name), (origin / entry.name).uri, error, message)


def _assign_ids(source: Source, origin: Location, entries: Sequence[Entry]) -> None:
    """Give each image an ``image_id``. Of paths that differ by their Unicode form only, the one in NFC stays."""
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
    """The path in NFC, or in URL encoding where it is not UTF-8."""
    raw = encoded(name)
    try:
        return unicodedata.normalize("NFC", raw.decode())
    except UnicodeDecodeError:
        return quote(raw)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _safe_suffix(name: str) -> str:
    """A suffix for the log, if it names a type of file: a name may have an identifier after its last dot."""
    suffix = _suffix(name)
    if not suffix:
        return "no suffix"
    return suffix if suffix in mimetypes.types_map or suffix in _IMAGING_SUFFIXES else "another suffix"


def _junk_name(name: str) -> str:
    """The part of a path that makes it junk, for the log; "hidden" in place of a hidden name, which may identify."""
    part = next(part for part in name.split("/") if is_junk(part))
    return part if re.fullmatch(r"[\w$@#+ .]*", part) and part.casefold() in _JUNK else "hidden"


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
