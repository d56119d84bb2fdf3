"""``python -m benchmarks.memory``: peak memory of ``score`` over an archive, and over one ten times as large.

Small images, the starter models with one point; what each process holds for itself is read once a second. That is its
anonymous memory: pages of the object store count for who has touched them, and their number is bounded by its size.
Prints the table and exits 1 where the driver or the models' actors take more of the larger archive than they may; a
task is seldom caught at its peak, the less the fewer there are, and is shown only. Takes some twenty minutes.
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
from tests.faults.injection import Scoring, ended

# What the peak of a kind of process may be beside that of the smaller archive.
MOST = 1.15
SIDE, LABELLED, ROWS_PER_SHARD = 64, 48, 100
ACTOR, TASK = "ModelActor", "read_and_decode"
JUDGED = ("driver", ACTOR)


def held(process: psutil.Process) -> Iterator[tuple[int, str, int]]:
    """Number, title and bytes of a process and of all that it started: what each holds for itself.

    Not by their part in shared pages: for that the kernel walks all of a process, which takes a tenth of a core's
    second for fourteen processes, and takes it from what is measured.
    """
    for one in [process, *process.children(recursive=True)]:
        try:
            title, memory = " ".join(one.cmdline()), one.memory_info()
        except psutil.Error:  # it has just ended
            continue
        yield one.pid, title, memory.rss - memory.shared


def peaks(process: Popen[str]) -> Counter[str]:
    """Peak bytes of the driver and of each kind of worker until the run ends."""
    highest: Counter[str] = Counter()
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        for number, title, size in held(driver):
            own = next((name for name in (ACTOR, TASK) if name in title), None)
            kind = "driver" if number == process.pid else own
            if kind:
                highest[kind] = max(highest[kind], size)
        sleep(1)
    return highest


def measure(folder: Path, count: int, model: str, settings: list[str]) -> Counter[str]:
    """Peaks of scoring so many phantoms; they are the same few over and over, under names of their own."""
    config = load_config(None, [*settings, f"pack.rows_per_shard={ROWS_PER_SHARD}"])
    images, few = folder / f"images-{count}", sorted((folder / "labelled" / "images").iterdir())
    images.mkdir()
    for index in range(count):
        (images / f"{index:06d}.png").symlink_to(few[index % len(few)])
    with connected(None, None):
        pack.run(config, str(images), str(folder / f"shards-{count}"), None)
    scoring = Scoring(str(folder / f"shards-{count}"), str(folder / f"out-{count}"), model, settings)
    started, process = monotonic(), scoring.start()
    highest = peaks(process)
    assert ended(process)["scored"] == count
    print(f"{count} images in {monotonic() - started:.0f} s", file=sys.stderr)
    return highest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="of the smaller archive (default: 2000)")
    call = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [f"work={folder / 'work'}", "segment.points_per_side=1"]
        config = load_config(None, [*settings, "train.epochs=1"])
        write_set(folder / "labelled", LABELLED, seed=0, preset="easy", size=SIDE)
        labels = str(folder / "labelled" / "labels.csv")
        with connected(None, None):
            pack.run(config, str(folder / "labelled" / "images"), str(folder / "few"), labels)
            embed.run(config, str(folder / "few"), str(folder / "features"))
            model = train.run(config, str(folder / "features"), "memory")["model_uri"]
        small, large = (measure(folder, count, model, settings) for count in (call.images, 10 * call.images))
    print(f"| process | MiB, {call.images} images | MiB, {10 * call.images} images | ratio |\n|---|---|---|---|")
    for kind in (*JUDGED, TASK):
        if small[kind]:
            print(f"| {kind} | {small[kind] >> 20} | {large[kind] >> 20} | {large[kind] / small[kind]:.3f} |")
    met = all(large[kind] <= MOST * small[kind] for kind in JUDGED)
    print(f"\n{', '.join(JUDGED)} at most {MOST}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
