"""Runs commands as in a container: as a user without a passwd entry, with small shared memory and a strict umask.

Each command runs in a mount namespace of its own, which needs root.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
USER = 12345  # a user id without an entry in /etc/passwd


def skip_unless_possible() -> None:
    """Skip the test where this machine does not allow mount namespaces."""
    tools = all(shutil.which(tool) for tool in ("unshare", "setpriv", "mount"))
    if os.geteuid() != 0 or not tools or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("another user and another /dev/shm need root and mount namespaces")


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of the plain user, who cannot read pytest's own folders."""
    path = Path(tempfile.mkdtemp(prefix="plain-", dir="/tmp"))
    os.chown(path, USER, USER)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def copy_for_user(source: Path, folder: Path) -> Path:
    """Copy a folder into one of the plain user, who may read the copy; its path."""
    copy = folder / "copy"
    shutil.copytree(source, copy)
    for path in (copy, *copy.rglob("*")):
        os.chown(path, USER, USER)
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


def medfocus(
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str],
    umask: str = "077",
    shared_memory: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of MedFocus as the plain user.

    Args:
        *arguments: the command and its arguments.
        cwd: working folder.
        environment: all environment variables, besides ``PATH`` and ``PYTHONPATH``.
        umask: umask of the process.
        shared_memory: size of ``/dev/shm``, such as ``64m``; the machine's own if None.
    """
    command = ["umask", umask, "&&", "cd", shlex.quote(str(cwd)), "&&", "exec", "env", "-i"]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), **environment}
    command += [shlex.quote(f"{name}={value}") for name, value in variables.items()]
    command += [shlex.quote(sys.executable), "-m", "medfocus", *map(shlex.quote, arguments)]
    lines = [*_open_folders(), *([f"mount -t tmpfs -o size={shared_memory} tmpfs /dev/shm"] if shared_memory else [])]
    user = f"setpriv --reuid {USER} --regid {USER} --clear-groups bash -c {shlex.quote(' '.join(command))}"
    script = "\n".join(["set -e", "mount --make-rprivate /", *lines, f"exec {user}"])
    call = ["unshare", "-m", "bash", "-c", script]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)


def _open_folders() -> Iterator[str]:
    """Shell lines that let other users reach the interpreter and the checkout through closed parent folders."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), REPOSITORY}
    closed = {above: path for path in needed for above in path.parents if not above.stat().st_mode & 0o001}
    kept = {path: Path(tempfile.gettempdir()) / f"kept-{number}" for number, path in enumerate(closed.values())}
    for path, place in kept.items():
        yield f"mkdir -p {place} && mount --bind {shlex.quote(str(path))} {place}"
    for above in closed:
        yield f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(above))}"
    for path, place in kept.items():
        yield f"mkdir -p {shlex.quote(str(path))} && mount --bind {place} {shlex.quote(str(path))}"
