"""Surroundings that a command may meet in a container: a user without an entry, small shared memory, a short umask.

They are made in a mount namespace of its own, which takes root.
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
USER = 12345  # has no entry in the list of users


def skip_unless_possible() -> None:
    tools = all(shutil.which(tool) for tool in ("unshare", "setpriv", "mount"))
    if os.geteuid() != 0 or not tools or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("another user and another /dev/shm need root, and a machine that lets it make mount namespaces")


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of the plain user; pytest's own may be read by its user only."""
    path = Path(tempfile.mkdtemp(prefix="plain-", dir="/tmp"))
    os.chown(path, USER, USER)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def given(place: Path, source: Path) -> Path:
    """A copy that the plain user may read, in the folder of that user."""
    copy = place / "given"
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
    """Run a command as the plain user, with this environment and nothing else of ours."""
    command = ["umask", umask, "&&", "cd", shlex.quote(str(cwd)), "&&", "exec", "env", "-i"]
    given = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), **environment}
    command += [shlex.quote(f"{name}={value}") for name, value in given.items()]
    command += [shlex.quote(sys.executable), "-m", "medfocus", *map(shlex.quote, arguments)]
    lines = [*_opened(), *([f"mount -t tmpfs -o size={shared_memory} tmpfs /dev/shm"] if shared_memory else [])]
    user = f"setpriv --reuid {USER} --regid {USER} --clear-groups bash -c {shlex.quote(' '.join(command))}"
    script = "\n".join(["set -e", "mount --make-rprivate /", *lines, f"exec {user}"])
    call = ["unshare", "-m", "bash", "-c", script]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)


def _opened() -> Iterator[str]:
    """Shell lines that let others reach the interpreter and the checkout, where a folder above them is closed."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), REPOSITORY}
    closed = {above: path for path in needed for above in path.parents if not above.stat().st_mode & 0o001}
    kept = {path: Path(tempfile.gettempdir()) / f"kept-{number}" for number, path in enumerate(closed.values())}
    for path, place in kept.items():
        yield f"mkdir -p {place} && mount --bind {shlex.quote(str(path))} {place}"
    for above in closed:
        yield f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(above))}"
    for path, place in kept.items():
        yield f"mkdir -p {shlex.quote(str(path))} && mount --bind {place} {shlex.quote(str(path))}"
