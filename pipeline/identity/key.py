"""The secret key of pseudonyms: from the environment, from a file that its owner alone can read, or made once."""

import os
import secrets
import stat
import uuid
from pathlib import Path

from medfocus.pipeline.config import DeidSection
from medfocus.pipeline.console.logs import log
from medfocus.pipeline.errors import UsageError

KEY_VARIABLE = "MEDFOCUS_KEY"
KEY_FILE = "pseudonym.key"
"""Name of the key in the work folder, where neither the environment nor the configuration has one."""

_LEAST_BYTES = 32
_MEND = "make one with: openssl rand -hex 32"


def load_key(section: DeidSection, work: str) -> bytes:
    """Read the secret key, or make one in the work folder.

    The first of these is used: the environment variable ``MEDFOCUS_KEY``, the file ``deid.key_file``, the file
    ``pseudonym.key`` in the work folder, which is made where it does not exist. The same key gives a patient the same
    pseudonym in every archive, so that it must be kept, and kept secret.

    Args:
        section: the section ``deid`` of the configuration.
        work: the work folder.

    Returns:
        The key, of at least 32 bytes. Text is used as it is written, without blanks at its ends.

    Raises:
        UsageError: the key is too short, or the file cannot be read, or other accounts can read it.
    """
    key = find_key(section, work)
    if key is not None:
        return key
    file = _own_file(work)
    _make(file)
    return _read(file)


def find_key(section: DeidSection, work: str) -> bytes | None:
    """The secret key of pseudonyms as in ``load_key``; None where there is none, and none is made."""
    text = os.environ.get(KEY_VARIABLE)
    if text is not None:
        return _checked(os.fsencode(text), KEY_VARIABLE)
    if section.key_file is not None:
        return _read(Path(section.key_file).expanduser())
    file = _own_file(work)
    return _read(file) if file.exists() else None


def _own_file(work: str) -> Path:
    return Path(work).absolute() / KEY_FILE


def _checked(content: bytes, place: str | Path) -> bytes:
    """The key in some content; raises UsageError where it is too short."""
    key = content.strip() if content.isascii() else content
    if len(key) < _LEAST_BYTES:
        raise UsageError(f"{place}: the key has {len(key)} bytes, at least {_LEAST_BYTES} are needed; {_MEND}")
    return key


def _read(file: Path) -> bytes:
    """The key in a file."""
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{file}: not a regular file; give the file of the key")
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(f"{file}: other accounts may use this key; run chmod 600 {file}")
            return _checked(stream.read(), file)
    except OSError as error:
        raise UsageError(f"{file}: the key cannot be read ({error.strerror}); correct deid.key_file") from error


def _make(file: Path) -> None:
    """Make a random key. Of several processes that make one at once, the first wins and its key is complete."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(f"{secrets.token_hex(_LEAST_BYTES)}\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.link(draft, file)
        except FileExistsError:
            return
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{file}: no key can be made there ({error.strerror}); set work to a folder that can be written, or"
            f" {KEY_VARIABLE}"
        ) from error
    log.warning("%s: made a key for pseudonyms; keep it, since other keys give other pseudonyms", file)
