"""``python -m benchmarks.loading``: rows a second that training gets from stored features, by its workers.

The same data set that ``train`` streams where the features do not fit into memory, split among workers as Ray Train
splits it; the workers take shuffled batches and do nothing with them. Prints the table.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray.data import DataIterator

from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import embed, pack
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.data.commit import FEATURES
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.training.features import read_labels
from medfocus.pipeline.training.fit import _datasets
from medfocus.pipeline.training.hold_out import hold_out
from medfocus.pipeline.training.loop import _SHUFFLED
from medfocus.starter.phantoms import write_set

IMAGES = 64


@ray.remote(num_cpus=0.25)
def take(rows: DataIterator, size: int, seed: int) -> tuple[int, int]:
    """A worker's part of an epoch: its rows and bytes."""
    count = held = 0
    given = {"local_shuffle_buffer_size": _SHUFFLED, "local_shuffle_seed": seed}
    for batch in rows.iter_batches(batch_size=size, batch_format="numpy", **given):
        count += len(batch["target"])
        held += sum(column.nbytes for column in batch.values())
    return count, held


def prepare(folder: Path, copies: int) -> Config:
    """Features of phantoms in a file, and copies of the file."""
    config = load_config(
        None, [f"work={folder / 'work'}", "segment.points_per_side=1", f"pack.rows_per_shard={IMAGES}"]
    )
    write_set(folder / "phantoms", IMAGES, seed=0, preset="easy", size=64)
    with connected(None, None):
        labels = str(folder / "phantoms" / "labels.csv")
        pack.run(config, str(folder / "phantoms" / "images"), str(folder / "shards"), labels)
        embed.run(config, str(folder / "shards"), str(folder / "out"))
    (file,) = (folder / "out" / FEATURES).glob("*.parquet")
    for copy in range(1, copies):
        shutil.copy(file, file.with_stem(f"{file.stem}-{copy}"))
    return config


def epoch(config: Config, folder: Path, workers: int) -> tuple[int, float, float]:
    """Rows, MiB and seconds of the second of two epochs: the first starts processes."""
    prefix = locate(str(folder / "out"), config.storage)
    labels = read_labels(prefix)
    folds, _ = hold_out(prefix, labels, config)
    settings = config.model.prompts(labels["label"], config.clip.cut)
    parts = _datasets(prefix, settings, folds, kept=False)["training"].streaming_split(workers, equal=True)
    for seed in range(2):
        started = time.monotonic()
        taken = ray.get([take.remote(part, config.train.batch_size, seed) for part in parts])
        seconds = time.monotonic() - started
    return sum(rows for rows, _ in taken), sum(held for _, held in taken) / 2**20, seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--files", type=int, default=100, help=f"of {IMAGES} rows each (default: 100)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    call = parser.parse_args()
    print("| workers | rows | rows/s | MiB/s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = prepare(folder, call.files)
        with connected(None, None):
            for workers in call.workers:
                rows, mebibytes, seconds = epoch(config, folder, workers)
                print(f"| {workers} | {rows} | {rows / seconds:.0f} | {mebibytes / seconds:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
