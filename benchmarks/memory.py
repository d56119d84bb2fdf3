"""Peak memory of ``score`` over an archive, and over one that is ten times as large.

Usage: ``python -m benchmarks.memory [--images 2000]`` (some 20 minutes)

Scores small images with the starter models and one click. Reads the anonymous memory of each process once a second;
shared pages of the object store are left out, since their number is bounded by the size of the store. Prints a table
with one row for each kind of process. The target is a ratio of at most 1.15 for the driver and for the actors with the
models. Tasks have no target: they live for a fraction of a second, so that few of them are read at their peak. The last
line says ``met`` or ``MISSED``; the exit code is 1 where it is missed.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from time import monotonic, sleep

import psutil

from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import embed, pack, train
from medfocus.pipeline.config import load_config
from medfocus.starter.phantoms import write_set
from tests.faults.injection import ScoreCommand, wait_for_result

# Largest peak of a kind of process over the larger archive, relative to the smaller one.
MAX_RATIO = 1.15
SIDE, LABELLED, ROWS_PER_SHARD = 64, 48, 100
ACTOR, TASK = "ModelActor", "read_and_decode"
LIMITED = ("driver", ACTOR)


def private_memory(process: psutil.Process) -> Iterator[tuple[int, str, int]]:
    """Memory that a process and its descendants hold apart from shared pages.

    A process's share of shared pages is not added. The kernel would walk all pages of the process for it; for fourteen
    processes that takes a tenth of a core, which is lost to what is measured.

    Yields:
        Process id, title and bytes, for each process.
    """
    for member in [process, *process.children(recursive=True)]:
        try:
            title, memory = " ".join(member.cmdline()), member.memory_info()
        except psutil.Error:  # it has just ended
            continue
        yield member.pid, title, memory.rss - memory.shared


def peaks(process: Popen[str]) -> Counter[str]:
    """Peak bytes of the driver and of each kind of worker until the run ends."""
    highest: Counter[str] = Counter()
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        for number, title, size in private_memory(driver):
            worker = next((name for name in (ACTOR, TASK) if name in title), None)
            kind = "driver" if number == process.pid else worker
            if kind:
                highest[kind] = max(highest[kind], size)
        sleep(1)
    return highest


def measure(folder: Path, count: int, model: str, settings: list[str]) -> Counter[str]:
    """Peak bytes of scoring ``count`` images: hard links to the labelled phantoms, each with a name of its own.

    ``pack`` would count symbolic links to the same file once. It keeps the images that are the same.
    """
    keys = [f"pack.rows_per_shard={ROWS_PER_SHARD}", "pack.duplicates=keep"]
    config = load_config(None, [*settings, *keys])
    images, phantoms = folder / f"images-{count}", sorted((folder / "labelled" / "images").iterdir())
    images.mkdir()
    for index in range(count):
        (images / f"{index:06d}.png").hardlink_to(phantoms[index % len(phantoms)])
    with connected(None, None):
        pack.run(config, str(images), str(folder / f"shards-{count}"), None)
    command = ScoreCommand(str(folder / f"shards-{count}"), str(folder / f"out-{count}"), model, settings)
    started, process = monotonic(), command.start()
    highest = peaks(process)
    result = wait_for_result(process)
    assert result["scored"] == count, result
    print(f"{count} images in {monotonic() - started:.0f} s", file=sys.stderr)
    return highest


def train_model(folder: Path, settings: list[str]) -> str:
    """Train a model on labelled phantoms below ``folder``; its URI."""
    config = load_config(None, [*settings, "train.epochs=1"])
    write_set(folder / "labelled", LABELLED, seed=0, preset="easy", size=SIDE)
    labels = str(folder / "labelled" / "labels.csv")
    with connected(None, None):
        pack.run(config, str(folder / "labelled" / "images"), str(folder / "few"), labels)
        embed.run(config, str(folder / "few"), str(folder / "features"))
        return str(train.run(config, str(folder / "features"), "memory")["model_uri"])


def main() -> int:
    """Print the table; 1 where the target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000, help="number in the smaller archive (default: 2000)")
    call = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [f"work={folder / 'work'}", "segment.points_per_side=1"]
        model = train_model(folder, settings)
        small, large = (measure(folder, count, model, settings) for count in (call.images, 10 * call.images))
    print(f"| process | MiB, {call.images} images | MiB, {10 * call.images} images | ratio |\n|---|---|---|---|")
    for kind in (*LIMITED, TASK):
        if small[kind]:
            print(f"| {kind} | {small[kind] >> 20} | {large[kind] >> 20} | {large[kind] / small[kind]:.3f} |")
    met = all(large[kind] <= MAX_RATIO * small[kind] for kind in LIMITED)
    print(f"\n{', '.join(LIMITED)} at most {MAX_RATIO}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
