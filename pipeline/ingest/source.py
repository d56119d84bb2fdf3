"""Walks a source lazily, and counts what is left out by its name alone."""

import mimetypes
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data.local_tree import Entry, Kind, encoded
from medfocus.pipeline.data.storage import AccessError, Location, StorageError

# Files with these suffixes are images, also where their bytes are not: they go to quarantine with the reason.
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".tif", ".tiff", ".bmp", ".dib", ".gif"}
    | {".webp", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".dcm", ".dicom", ".heic", ".jxl", ".nii"}
)
# Files and folders of file managers, archivers, version control and storage. Hidden names (.name) are junk as well.
_JUNK = frozenset(
    {"__macosx", "$recycle.bin", "recycler", "@eadir", "@recycle", "#recycle", "#snapshot", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
)
# Seconds before each retry, beside the retries that an S3 client makes by itself.
_PAUSES = (1.0, 5.0, 15.0)
# Causes of a permanent error.
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)
# Suffixes of medical and other images that MIME types do not name.
_IMAGING_SUFFIXES = SUFFIXES | {".gz", ".mha", ".mhd", ".nrrd", ".npy", ".npz", ".avif", ".svs"}
# Error class and message of a file without bytes.
EMPTY = ("EmptyImage", "the file is empty; copy it again")


@dataclass
class LeftOut:
    """What a walk leaves out by its name alone.

    Args:
        junk: number of files and folders of systems and tools, by name.
        repeated: number of links to files that have another name in the source.
    """

    junk: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def log(self) -> None:
        """Log counts of what is left out."""
        if self.junk:
            names = format_counts(self.junk)
            log.info("%d files and folders of systems and tools are left out: %s", self.junk.total(), names)
        if self.repeated:
            log.info("%d links to files that have another name here are left out", self.repeated)


def walk_source(origin: Location, left_out: LeftOut) -> Iterator[Entry]:
    """Yield the files below a folder or prefix, and an entry of the kind ``TROUBLE`` for what cannot be used.

    Args:
        origin: the folder or prefix.
        left_out: counts what is not yielded.

    Raises:
        StorageError: the source cannot be read.
    """
    for entry in origin.walk(is_junk):
        if entry.kind is Kind.SKIPPED:
            left_out.junk[_junk_name(entry.name)] += 1
        elif entry.kind is Kind.REPEATED:
            left_out.repeated += 1
        else:
            yield entry


def is_junk(name: str) -> bool:
    """Whether a part of a path is the name of a file or folder of systems and tools."""
    return name.casefold() in _JUNK or (name.startswith(".") and name not in (".", ".."))


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


def refusal_of(error: StorageError, location: Location) -> tuple[str, str]:
    """Error class and message for a file that cannot be read, without its name, which may identify a patient."""
    if isinstance(error.__cause__, FileNotFoundError):
        return "Vanished", "the file was there when the source was listed, and is no longer"
    return "Unreadable", str(error).removeprefix(f"{location.uri}: ")


def identifier(name: str) -> str:
    """A path in NFC, or in URL encoding where it is not UTF-8."""
    raw = encoded(name)
    try:
        return unicodedata.normalize("NFC", raw.decode())
    except UnicodeDecodeError:
        return quote(raw)


def has_image_suffix(name: str) -> bool:
    """Whether the suffix of a name is that of an image."""
    return _suffix(name) in SUFFIXES


def safe_suffix(name: str) -> str:
    """A suffix for the log, if it names a type of file: a name may have an identifier after its last dot."""
    suffix = _suffix(name)
    if not suffix:
        return "no suffix"
    return suffix if suffix in mimetypes.types_map or suffix in _IMAGING_SUFFIXES else "another suffix"


def format_counts(counts: Counter[str]) -> str:
    """Counts as a text, the largest first."""
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _junk_name(name: str) -> str:
    """The part of a path that makes it junk, for the log; "hidden" in place of a hidden name, which may identify."""
    part = next(part for part in name.split("/") if is_junk(part))
    return part if re.fullmatch(r"[\w$@#+ .]*", part) and part.casefold() in _JUNK else "hidden"
