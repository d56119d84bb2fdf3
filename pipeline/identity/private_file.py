"""Files that their owner alone can read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medfocus.pipeline.errors import UsageError


@contextmanager
def private_file(path: str | Path, *, append: bool = False) -> Iterator[BinaryIO]:
    """Open a file with the permissions 0600, also where it exists with others.

    Args:
        path: a local path; its folder is made if needed.
        append: whether to write behind what the file holds.

    Raises:
        UsageError: the file cannot be opened, or is not on this machine.
    """
    if "://" in str(path):
        raise UsageError(f"{path}: is not a local path; what it holds must stay on this machine")
    file = Path(path).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC), 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror}); choose another file") from error
    with os.fdopen(descriptor, "wb") as stream:
        yield stream
