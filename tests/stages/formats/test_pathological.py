"""Broken and unusual files from elsewhere, read under limits of memory and time in processes of their own.

``--pathological`` names a folder of such files, in a folder a kind; ``--field-pictures`` one with files in ``in/`` and
what a viewer shows of them in ``expected/NAME.npy`` (uint8 [S, S] or [S, S, 3]), where it shows anything.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.stages.formats.cases import decoded

REPOSITORY = Path(__file__).parents[3]
_FILES, _MEMORY, _SECONDS = 20, 4 << 30, 60
# Decodes files under limits and prints a line for each: error, message, height and width.
_CHILD = f"""
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
resource.setrlimit(resource.RLIMIT_CPU, ({_SECONDS}, {_SECONDS}))
from tests.stages.formats.cases import decoded
for path in sys.argv[1:]:
    out = decoded(Path(path).read_bytes(), 128, 100_000_000)
    print(json.dumps([str(out[name][0]) for name in ("error", "message", "height", "width")]), flush=True)
"""
ERRORS = {"EmptyImage", "Undecodable", "Truncated", "Unsupported", "TooManyPixels", "ManyFrames", "NotFinite"}


def outcomes(paths: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """What comes of each file; one that ends its process has the error ``Died``, and the others go on without it."""
    left = list(paths)
    while left:
        command = [sys.executable, "-W", "ignore", "-c", _CHILD, *map(str, left)]
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=4 * _SECONDS, cwd=REPOSITORY, check=False
        )
        lines = [json.loads(line) for line in child.stdout.splitlines()]
        yield from zip(left, lines, strict=False)
        left = left[len(lines) :]
        if left:
            yield left.pop(0), ["Died", f"exit status {child.returncode}: {child.stderr[-300:]}", "0", "0"]


def test_each_file_gives_a_picture_or_a_known_error(pathological: Path) -> None:
    files = sorted(path for path in pathological.rglob("*/*") if path.is_file())
    assert files
    wrong = []
    with ThreadPoolExecutor(2) as processes:
        groups = [files[start : start + _FILES] for start in range(0, len(files), _FILES)]
        for path, (error, message, height, width) in (
            found for group in processes.map(lambda group: list(outcomes(group)), groups) for found in group
        ):
            line = f"{path.relative_to(pathological)!s:90} {f'{error}: {message}' if error else f'{height} x {width}'}"
            print(line)
            told = error in ERRORS and len(message) > 10 and "does not expect" not in message
            if not told and (error or min(int(height), int(width)) < 1):
                wrong.append(line)
    assert not wrong


def test_each_file_is_decoded_as_a_viewer_shows_it(field_pictures: Path) -> None:
    files = sorted((field_pictures / "in").iterdir())
    assert files
    wrong = {}
    for path in files:
        expected = field_pictures / "expected" / f"{path.name}.npy"
        wanted = np.load(expected) if expected.exists() else None
        out = decoded(path.read_bytes(), len(wanted) if wanted is not None else 128, 100_000_000)
        if wanted is None:
            continue
        off = np.abs(out["pixels"][0].astype(int) - wanted.reshape(*wanted.shape[:2], -1).astype(int)).mean()
        if out["error"][0] or off > 1.5:
            wrong[path.name] = (out["message"][0], off)
    assert not wrong
