"""Rows a second that training workers get from stored features, and MiB a second of shards on S3.

Usage: ``python -m benchmarks.loading [--files 100] [--workers 1 2 4] [--shards 16]``

Reads the data set that ``train`` streams where the features do not fit into memory, split among the workers as Ray
Train splits it. The workers take shuffled batches and discard them. Prints a table with one row for each number of
workers.

Then reads shards of 16 MiB from an S3 server over HTTP, one after the other: as a run does, and with pyarrow's own S3.
Both take turns three times. Prints a table with the median of each. There is no target.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from ray.data import DataIterator

from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import embed, pack
from medfocus.pipeline.config import Config, StorageSection, load_config
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import FEATURES
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.training.features import read_labels
from medfocus.pipeline.training.fit import _datasets
from medfocus.pipeline.training.hold_out import hold_out
from medfocus.pipeline.training.loop import _SHUFFLED
from medfocus.starter.phantoms import write_set
from tests import servers

IMAGES = 64
_SHARD_BYTES, _TURNS = 16 << 20, 3


@ray.remote(num_cpus=0.25)
def read_epoch(rows: DataIterator, size: int, seed: int) -> tuple[int, int]:
    """One worker's part of an epoch: the number of its rows and of their bytes."""
    count = total = 0
    shuffle = {"local_shuffle_buffer_size": _SHUFFLED, "local_shuffle_seed": seed}
    for batch in rows.iter_batches(batch_size=size, batch_format="numpy", **shuffle):
        count += len(batch["target"])
        total += sum(column.nbytes for column in batch.values())
    return count, total


def prepare(folder: Path, copies: int) -> Config:
    """Embed phantoms, join their features to one file, and copy the file."""
    config = load_config(None, [f"work={folder / 'work'}", "segment.points_per_side=1"])
    write_set(folder / "phantoms", IMAGES, seed=0, preset="easy", size=64)
    with connected(None, None):
        labels = str(folder / "phantoms" / "labels.csv")
        pack.run(config, str(folder / "phantoms" / "images"), str(folder / "shards"), labels)
        embed.run(config, str(folder / "shards"), str(folder / "out"))
    files = sorted((folder / "out" / FEATURES).glob("*.parquet"))
    content = records.encode(pa.concat_tables(map(pq.read_table, files)))
    for file in files:
        file.unlink()
    for copy in range(copies):
        (folder / "out" / FEATURES / f"{copy}.parquet").write_bytes(content)
    return config


def epoch(config: Config, folder: Path, workers: int) -> tuple[int, float, float]:
    """Rows, MiB and seconds of the second of two epochs; the first one starts the processes."""
    prefix = locate(str(folder / "out"), config.storage)
    labels = read_labels(prefix)
    folds, _ = hold_out(prefix, labels, config)
    settings = config.model.prompts(labels["label"], config.clip.cut)
    parts = _datasets(prefix, settings, folds, kept=False)["training"].streaming_split(workers, equal=True)
    for seed in range(2):
        started = time.monotonic()
        sizes = ray.get([read_epoch.remote(part, config.train.batch_size, seed) for part in parts])
        seconds = time.monotonic() - started
    return sum(rows for rows, _ in sizes), sum(total for _, total in sizes) / 2**20, seconds


def shard_speeds(count: int) -> dict[str, float]:
    """MiB a second of reading shards from an S3 server, by the way of reading."""
    speeds: dict[str, list[float]] = {"as a run reads": [], "pyarrow's S3": []}
    with servers.s3() as url:
        os.environ.update(servers.s3_user(url))
        boto3.client("s3", region_name="us-east-1", endpoint_url=url).create_bucket(Bucket="shards")
        folder = locate("s3://shards/archive", StorageSection())
        arrow = pafs.S3FileSystem(endpoint_override=url.partition("//")[2], scheme="http", region="us-east-1")
        content = os.urandom(_SHARD_BYTES)
        places = [folder / f"{index}.parquet" for index in range(count)]
        for place in places:
            place.write(content)
        for turn in range(2 * _TURNS):
            way = list(speeds)[turn % 2]
            started = time.monotonic()
            for place in places:
                if turn % 2:
                    with arrow.open_input_stream(place.path) as stream:
                        size = len(stream.read())
                else:
                    size = len(place.read())
                if size != _SHARD_BYTES:
                    raise RuntimeError(f"{place.uri}: {size} bytes were read")
            speeds[way].append(count * (_SHARD_BYTES >> 20) / (time.monotonic() - started))
    return {way: statistics.median(values) for way, values in speeds.items()}


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100, help=f"files of {IMAGES} rows each (default: 100)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers (default: 1 2 4)")
    parser.add_argument("--shards", type=int, default=16, help="shards of 16 MiB on S3 (default: 16)")
    call = parser.parse_args()
    print("| workers | rows | rows/s | MiB/s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = prepare(folder, call.files)
        with connected(None, None):
            for workers in call.workers:
                rows, mebibytes, seconds = epoch(config, folder, workers)
                print(f"| {workers} | {rows} | {rows / seconds:.0f} | {mebibytes / seconds:.0f} |", flush=True)
    print(f"\n| {call.shards} shards of 16 MiB on S3 | MiB/s |\n|---|---|")
    for way, speed in shard_speeds(call.shards).items():
        print(f"| {way} | {speed:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
