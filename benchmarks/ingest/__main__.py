"""How fast ``pack`` takes images in, and what memory that takes.

Usage: ``python -m benchmarks.ingest [--images 400] [--objects 1000000] [--files 2000]`` (some twenty minutes)

The first table has the images of 1024 x 1024 pixels that are handled in a second: by ``pack``, by its decoders alone
in as many processes as there are CPUs, by a plain loop with pydicom, and by dicom2jpg, which both save PNG files. A
fifth of the images is packed first, then all of them: the speed is that of the difference, and the rest is the time
that a call takes whatever it packs. The target is 0.8 of the decoders alone.

The second table has the driver's memory for the plan of a source of many objects, of which nothing is read (target:
less than 500 MiB), and the peak of ``pack`` over small DICOM files and over ten times as many (target: a ratio of at
most 1.15). Each line says ``met`` or ``MISSED``; the exit code is 1 where one is missed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

from benchmarks.ingest import baselines, planning, workload
from benchmarks.ingest.memory import peak_of_driver
from benchmarks.listing import bucket_of
from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import pack
from medfocus.pipeline.config import load_config

_COLUMNS = ("pack", "seconds beside", "decoders alone", "of these", "pydicom", "dicom2jpg")
# Images for each CPU that are packed before anything is measured.
_WARM = 64
MIN_RATIO, MAX_MIB, MAX_MEMORY_RATIO = 0.8, 500, 1.15


def seconds_to_pack(folder: Path, images: Path, count: int) -> float:
    """Seconds that ``pack`` takes for a folder of so many images, with Ray started before."""
    config = load_config(None, [f"work={folder / 'work'}", "burned_in.action=keep"])
    started = monotonic()
    result = pack.run(config, str(images), str(folder / f"shards-{images.name}"))
    assert result["rows"] == count, result
    return monotonic() - started


def pack_speed(folder: Path, name: str, paths: Sequence[Path]) -> tuple[float, float]:
    """Images that ``pack`` takes in a second, and the seconds that a call takes beside them."""
    few = folder / f"{name}-few"
    few.mkdir()
    part = max(1, len(paths) // 5)
    for path in paths[:part]:
        (few / path.name).hardlink_to(path)
    first, second = (seconds_to_pack(folder, place, size) for place, size in ((few, part), (folder / name, len(paths))))
    speed = (len(paths) - part) / max(second - first, 1e-9)
    return speed, second - len(paths) / speed


def compare_speeds(folder: Path, count: int) -> bool:
    """Print the table of speeds; whether the target is met."""
    cpus, met = os.cpu_count() or 1, True
    print(f"| {count} images, {workload.SIDE} x {workload.SIDE} | {' | '.join(_COLUMNS)} |")
    print("|---" * (len(_COLUMNS) + 1) + "|")
    with connected(None, None):
        workload.write_files(folder / "warm", "PNG, 8 bit", _WARM * cpus)
        seconds_to_pack(folder, folder / "warm", _WARM * cpus)  # each CPU has a process from now on
        for number, name in enumerate(workload.FORMATS):
            paths = workload.write_files(folder / f"images-{number}", name, count)
            speed, seconds = pack_speed(folder, f"images-{number}", paths)
            alone = baselines.images_per_second(baselines.decode, paths, cpus)
            others = ["n/a", "n/a"]
            if name.startswith("DICOM"):
                others[0] = f"{baselines.images_per_second(baselines.save_with_pydicom, paths, cpus):.1f}"
                others[1] = "n/a, install with pip install dicom2jpg"
                if baselines.has_dicom2jpg():
                    others[1] = f"{baselines.images_per_second(baselines.save_with_dicom2jpg, paths, cpus):.1f}"
            verdict = "met" if speed >= MIN_RATIO * alone else "MISSED"
            figures = f"{speed:.1f} | {seconds:.1f} | {alone:.1f} | {speed / alone:.2f}, {verdict}"
            print(f"| {name} | {figures} | {' | '.join(others)} |", flush=True)
            met &= verdict == "met"
    print(f"\nat least {MIN_RATIO} of the decoders alone: {'met' if met else 'MISSED'}\n", flush=True)
    return met


def compare_memory(folder: Path, objects: int, files: int) -> bool:
    """Print the table of memory; whether the targets are met."""
    with bucket_of(objects) as url, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        items, portions, seconds, mebibytes = process.submit(planning.plan, url).result()
    print("| driver | files | seconds | MiB |\n|---|---|---|---|")
    print(f"| plan, {portions} portions | {items} | {seconds:.0f} | {mebibytes} |", flush=True)
    peaks = []
    for count in (files, 10 * files):
        started = monotonic()
        peaks.append(peak_of_driver(folder, count))
        print(f"| pack | {count} | {monotonic() - started:.0f} | {peaks[-1]} |", flush=True)
    planned, flat = mebibytes < MAX_MIB and items == objects, peaks[1] <= MAX_MEMORY_RATIO * peaks[0]
    print(f"\nplan under {MAX_MIB} MiB: {'met' if planned else 'MISSED'}")
    print(f"peak at most {MAX_MEMORY_RATIO} times: {peaks[1] / peaks[0]:.3f}, {'met' if flat else 'MISSED'}")
    return planned and flat


def main() -> int:
    """Print the tables; 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400, help="images of each format (default: 400)")
    parser.add_argument("--objects", type=int, default=1_000_000, help="objects of the plan (default: 1000000)")
    parser.add_argument("--files", type=int, default=2000, help="files of the smaller archive (default: 2000)")
    call = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        fast = compare_speeds(Path(name), call.images)
        small = compare_memory(Path(name), call.objects, call.files)
    return 0 if fast and small else 1


if __name__ == "__main__":
    sys.exit(main())
