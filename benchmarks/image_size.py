"""What smaller images for SAM2 save in time, and what they cost in masks and accuracy.

Usage: ``python -m benchmarks.image_size [--sizes 320 256 192 128] [--images 400]``

For each ``segment.image_size`` the project's own commands embed, train on and score hard phantoms. CLIP gets the same
smaller image. Prints a table with CPU milliseconds an image of the region finder on one thread, how the masks of the
archive cover its lesions, and the accuracy. There is no target: the table helps to choose.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import torch
from PIL import Image

from benchmarks.starter import SEED, Cover, covering
from medfocus.cluster.connect import connected
from medfocus.pipeline.commands import embed, evaluate, pack, score, train
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.data.commit import PREDICTIONS
from medfocus.pipeline.execution.actor import load_segment
from medfocus.stages.masks import decode_mask
from medfocus.starter.phantoms import draw, write_set

SIZES, LABELLED, ARCHIVE, SIDE = (320, 256, 192, 128), 240, 400, 320
# Number of images that the region finder is timed on.
TIMED = 16


def milliseconds(config: Config) -> float:
    """CPU time of the region finder for one decoded image."""
    segment = load_segment(config, "cpu")
    images = np.stack([draw(index, seed=SEED, size=segment.size, preset="hard").image for index in range(TIMED)])
    segment.find(images[: segment.batch_size, ..., None])
    began = time.process_time()
    for start in range(0, TIMED, segment.batch_size):
        segment.find(images[start : start + segment.batch_size, ..., None])
    return 1000 * (time.process_time() - began) / TIMED


def measure_quality(config: Config, folder: Path, out: Path) -> tuple[Cover, float]:
    """Embed, train and score.

    Args:
        config: the configuration; ``segment.image_size`` is what varies.
        folder: holds ``labelled-shards``, ``archive-shards`` and ``archive/masks``.
        out: where features and rows are written; its name is the model's.

    Returns:
        How the archive's masks cover its lesions, and the accuracy over the archive.
    """
    embed.run(config, str(folder / "labelled-shards"), str(out / "features"))
    model = train.run(config, str(out / "features"), out.name)["model_uri"]
    score.run(config, str(folder / "archive-shards"), str(out / "rows"), model)
    accuracy = evaluate.run(config, str(out / "rows"), str(folder / "archive-shards"))["accuracy"]
    rows = pads.dataset(out / "rows" / PREDICTIONS).to_table(columns=["image_id", "mask"]).to_pylist()
    masks = [decode_mask(row["mask"]["counts"], *row["mask"]["size"]) for row in rows]
    lesions = [np.asarray(Image.open(folder / "archive" / "masks" / row["image_id"])) > 0 for row in rows]
    return covering(masks, lesions), accuracy


def prepare(folder: Path, settings: list[str], images: int) -> None:
    """Draw and pack the labelled phantoms and the archive."""
    config = load_config(None, settings)
    for part, start, count in (("labelled", 0, LABELLED), ("archive", LABELLED, images)):
        write_set(folder / part, count, seed=SEED, preset="hard", size=SIDE, start=start)
        labels = str(folder / part / "labels.csv")
        pack.run(config, str(folder / part / "images"), str(folder / f"{part}-shards"), labels)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.image_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"multiples of 32 (default: {SIZES})")
    parser.add_argument("--images", type=int, default=ARCHIVE, help=f"number in the archive (default: {ARCHIVE})")
    call = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, connected(None, None):
        folder = Path(name)
        keys = ["pack.rows_per_shard=20", "train.folds=2", "train.epochs=20"]
        settings = [f"work={folder / 'work'}", "deid.names=keep", *keys]  # masks have the names of images
        prepare(folder, settings, call.images)
        print("| image_size | CPU ms an image | lesions covered | of the image kept | accuracy |")
        print("|---|---|---|---|---|")
        for size in call.sizes:
            config = load_config(None, [*settings, f"segment.image_size={size}"])
            cover, accuracy = measure_quality(config, folder, folder / f"size-{size}")
            figures = f"{cover.covered:.3f} | {cover.kept:.3f} | {accuracy:.3f}"
            print(f"| {size} | {milliseconds(config):.0f} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
