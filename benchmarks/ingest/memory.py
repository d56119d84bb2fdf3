"""Peak memory of the driver of ``pack``."""

import subprocess
import sys
from pathlib import Path
from time import sleep

import psutil

from benchmarks.ingest import workload

_SIDE = 32


def peak_of_driver(folder: Path, count: int) -> int:
    """Pack so many small DICOM files in a process of its own; the peak of its private memory in MiB."""
    images = folder / f"small-{count}"
    images.mkdir()
    for number in range(count):
        (images / f"{number:06d}.dcm").write_bytes(workload.dicom(number, side=_SIDE))
    call = ["pack", str(images), str(folder / f"small-shards-{count}"), "--set", f"work={folder / 'work'}", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "medfocus", *call], stdout=subprocess.DEVNULL)
    driver, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        memory = driver.memory_info()
        peak = max(peak, memory.rss - memory.shared)
        sleep(0.25)
    assert process.returncode == 0, process.returncode
    return peak >> 20
