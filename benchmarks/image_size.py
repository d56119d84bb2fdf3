"""``python -m benchmarks.image_size``: what smaller images for SAM2 save, and what they cost in masks and accuracy.

For each ``segment.image_size`` hard phantoms are embedded, trained on and scored by the project's own commands. Prints
CPU milliseconds an image of the region finder on one thread, how the archive's masks cover its lesions, and the
accuracy over it. CLIP is shown the same smaller image. Nothing is judged: it is a choice.
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
# Images that the region finder is timed with.
TIMED = 16


def milliseconds(config: Config) -> float:
    """CPU time of the region finder for an image that is decoded."""
    segment = load_segment(config, "cpu")
    images = np.stack([draw(index, seed=SEED, size=segment.size, preset="hard").image for index in range(TIMED)])
    segment.find(images[: segment.batch_size, ..., None])
    began = time.process_time()
    for start in range(0, TIMED, segment.batch_size):
        segment.find(images[start : start + segment.batch_size, ..., None])
    return 1000 * (time.process_time() - began) / TIMED


def scored(config: Config, folder: Path, out: Path) -> tuple[Cover, float]:
    """Embed, train and score: how the archive's masks cover its lesions, and the accuracy."""
    embed.run(config, str(folder / "labelled-shards"), str(out / "features"))
    model = train.run(config, str(out / "features"), out.name)["model_uri"]
    score.run(config, str(folder / "archive-shards"), str(out / "rows"), model)
    accuracy = evaluate.run(config, str(out / "rows"), str(folder / "archive-shards"))["accuracy"]
    rows = pads.dataset(out / "rows" / PREDICTIONS).to_table(columns=["image_id", "mask"]).to_pylist()
    masks = [decode_mask(row["mask"]["counts"], *row["mask"]["size"]) for row in rows]
    lesions = [np.asarray(Image.open(folder / "archive" / "masks" / row["image_id"])) > 0 for row in rows]
    return covering(masks, lesions), accuracy


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_size", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"multiples of 32 (default: {SIZES})")
    parser.add_argument("--images", type=int, default=ARCHIVE, help=f"of the archive (default: {ARCHIVE})")
    call = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, connected(None, None):
        folder = Path(name)
        given = [f"work={folder / 'work'}", "pack.rows_per_shard=20", "train.folds=2", "train.epochs=20"]
        for part, start, count in (("labelled", 0, LABELLED), ("archive", LABELLED, call.images)):
            write_set(folder / part, count, seed=SEED, preset="hard", size=SIDE, start=start)
            labels = str(folder / part / "labels.csv")
            pack.run(load_config(None, given), str(folder / part / "images"), str(folder / f"{part}-shards"), labels)
        print(
            "| image_size | CPU ms an image | lesions covered | of the image kept | accuracy |\n|---|---|---|---|---|"
        )
        for size in call.sizes:
            config = load_config(None, [*given, f"segment.image_size={size}"])
            cover, accuracy = scored(config, folder, folder / f"size-{size}")
            figures = f"{cover.covered:.3f} | {cover.kept:.3f} | {accuracy:.3f}"
            print(f"| {size} | {milliseconds(config):.0f} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
