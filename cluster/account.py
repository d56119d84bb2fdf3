"""Folders that the account of a command can use, also where it has few rights, as in a container."""

import os
import stat
import tempfile
from pathlib import Path

from medfocus.cluster.errors import ClusterError


def own_folder() -> Path:
    """A folder below the temporary folder that only this account may use, the same at each call.

    If another account owns a folder of that name, or others may write to it, a new folder is made instead.

    Raises:
        ClusterError: no temporary folder can be written.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"medfocus-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
                return Path(tempfile.mkdtemp(prefix="medfocus-"))
        return folder
    except OSError as error:
        raise ClusterError("no temporary folder can be written; set TMPDIR to one that can") from error


def is_writable(folder: Path) -> bool:
    """Whether this account can write to the folder, or make it if it does not exist yet."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
