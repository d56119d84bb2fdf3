"""Peak memory of the driver of ``pack``."""

import subprocess
import sys
from pathlib import Path

from benchmarks.ingest import workload
from benchmarks.memory import peaks

_SIDE = 32


def peak_of_driver(folder: Path, count: int) -> int:
    """Pack so many small DICOM files in a process of its own; the peak of its private memory in MiB."""
    images = folder / f"small-{count}"
    images.mkdir()
    for number in range(count):
        (images / f"{number:06d}.dcm").write_bytes(workload.dicom(number, side=_SIDE))
    call = ["pack", str(images), str(folder / f"small-shards-{count}"), "--set", f"work={folder / 'work'}", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "medfocus", *call], stdout=subprocess.DEVNULL, text=True)
    highest = peaks(process)
    assert process.returncode == 0, process.returncode
    return highest["driver"] >> 20
