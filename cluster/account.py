"""What the account that runs a command may lack, as in a container: a home, a name, a folder that can be written."""

import getpass
import os
import stat
import tempfile
from pathlib import Path

from medfocus.cluster.errors import ClusterError


def complete_environment() -> None:
    """Give this process, and those it starts, a home and a name where the account has none.

    Ray cannot be imported without a home folder, and MLflow asks for a name of the user. A home that can be read but
    not written stays the home: it may hold settings and credentials.

    Raises:
        ClusterError: no temporary folder can be written.
    """
    home = os.path.expanduser("~")  # noqa: PTH111  Path raises an error where there is no home
    if not os.access(home, os.R_OK | os.X_OK) or not Path(home).is_dir():
        os.environ["HOME"] = str(own_folder())
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the user id has no entry in the list of users
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def own_folder() -> Path:
    """A folder below the temporary folder that only this account may use, the same at each call.

    Where somebody else has taken its name, a new folder is made instead.

    Raises:
        ClusterError: no temporary folder can be written.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"medfocus-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                return Path(tempfile.mkdtemp(prefix="medfocus-"))
        return folder
    except OSError as error:
        raise ClusterError("no temporary folder can be written; set TMPDIR to one that can") from error


def is_writable(folder: Path) -> bool:
    """Whether the folder, which need not exist yet, can be made and written by this account."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
