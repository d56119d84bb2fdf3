"""Ways to score the same shards with the same weights: ``python -m benchmarks.throughput.ways WAY FOLDER COUNT``.

Each is a generator over batches with ``image_id``, ``mask_counts`` and ``label``. Its rows are kept as Parquet; one
line of JSON says how many there were after the first batch and the seconds for them; where batches say when they were
``begun``, how many in all, and the seconds from the first one's beginning.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.starter import automatic_generator, best_union, fit_to
from benchmarks.throughput.work import ROWS_PER_SHARD, Stages, Workload, actors
from medfocus.pipeline.execution.actor import ENVIRONMENT
from medfocus.stages.batch import Batch
from medfocus.stages.batched_sam2 import ImageFeatures
from medfocus.stages.masks import bounding_box, encode_mask, main_piece
from medfocus.stages.regions import Candidates, score_masks
from medfocus.stages.segment import Segment
from medfocus.stages.segment_settings import SegmentSettings

# Columns that every way gives.
KEPT = ("image_id", "mask_counts", "height", "width", "label")


def ceiling(work: Workload, count: int) -> Iterator[Batch]:
    """The models alone, in as many processes as ``score`` has for them, each with the same number of shards.

    Images are decoded before the clock starts; no Ray, nothing is written.
    """
    processes = actors()
    os.environ |= ENVIRONMENT
    context, each = get_context("spawn"), len(work.files(count)) // processes
    together, answers = context.Barrier(processes), context.Queue()
    for part in range(processes):
        given = (str(work.folder), range(part * each, (part + 1) * each), together, answers)
        context.Process(target=_models_alone, args=given, daemon=True).start()
    for _ in range(processes * each):
        yield answers.get(timeout=600)


def _models_alone(folder: str, shards: range, together: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    work = Workload(Path(folder))
    stages = Stages(work)
    batches = list(work.batches(shards.stop * ROWS_PER_SHARD))[shards.start :]
    decoded = [stages.decode(batch) for batch in batches]
    stages.models({name: column[:1] for name, column in decoded[0].items()})
    together.wait(timeout=600)
    for batch in decoded:
        begun = np.full(len(batch["image_id"]), time.time())
        done = stages.models(batch)
        answers.put({name: done[name] for name in KEPT} | {"begun": begun})


def loop_with_generator(work: Workload, count: int) -> Iterator[Batch]:
    """As it is mostly done: SAM2's automatic generator at its defaults, image by image, then CLIP."""
    stages = Stages(work)
    generator = automatic_generator(stages.segment.model)
    for decoded in map(stages.decode, work.batches(count)):
        for row, pixels in enumerate(decoded["pixels"]):
            union = best_union(generator.generate(np.repeat(pixels, 3, axis=2)), pixels.shape[:2])
            side = np.full(1, stages.decode.size)
            found = {"mask_counts": np.array([encode_mask(union)], object), "height": side, "width": side}
            box = bounding_box(main_piece(union))[None]
            yield stages.label(
                {name: column[row : row + 1] for name, column in decoded.items()} | found | {"region_box": box}
            )


class PredictorSegment(Segment):
    """The region finder over the package's own predictor: an image at a time, as its examples call it."""

    def __init__(self, model: Any, settings: SegmentSettings):
        super().__init__(model, replace(settings, batch_size=1))
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        self.predictor = SAM2ImagePredictor(model)
        fit_to(self.predictor, model.image_size)

    def encode(self, pixels: torch.Tensor) -> ImageFeatures:
        self.predictor.set_image(pixels[0].expand(-1, -1, 3).numpy())
        kept = self.predictor._features
        return ImageFeatures(kept["image_embed"], tuple(kept["high_res_feats"]))

    def propose(self, features: ImageFeatures) -> Iterator[Candidates]:
        labels = torch.ones(len(self.points), 1, dtype=torch.int, device=self.device)
        clicks = self.points[:, None]
        _, iou, logits = self.predictor._predict(clicks, labels, multimask_output=True, return_logits=True)
        masks, image = logits.flatten(0, 1), torch.zeros(iou.numel(), dtype=torch.long, device=self.device)
        yield Candidates(
            image, masks, score_masks(masks, iou.flatten(), self.settings), clicks.expand((*iou.shape, 2)).flatten(0, 1)
        )


def loop_with_predictor(work: Workload, count: int) -> Iterator[Batch]:
    """SAM2's predictor in a loop, with the same points and the same choice of regions: the plain path."""
    stages = Stages(work)
    stages.segment = PredictorSegment(stages.segment.model, work.config.segment.settings)
    for decoded in map(stages.decode, work.batches(count)):
        for row in range(len(decoded["image_id"])):
            yield stages.models({name: column[row : row + 1] for name, column in decoded.items()})


class _Shards(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A shard an item, decoded in the worker that reads it."""

    def __init__(self, batches: list[Batch], decode: Callable[[Batch], Batch]):
        self.batches, self.decode = batches, decode

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.decode(self.batches[index])


def dataloader(work: Workload, count: int) -> Iterator[Batch]:
    """A PyTorch DataLoader with two worker processes around the batched models; nothing is written."""
    stages = Stages(work)
    shards = _Shards(list(work.batches(count)), stages.decode)
    loader = torch.utils.data.DataLoader(shards, batch_size=None, num_workers=2, collate_fn=lambda item: item)
    yield from map(stages.models, loader)


class _Segmenting:
    def __init__(self, folder: str):
        torch.set_num_threads(2)
        self.stages = Stages(Workload(Path(folder)))

    def __call__(self, batch: Batch) -> Batch:
        begun = np.full(len(batch["image_id"]), time.time())  # blocks come out joined, the first with the last
        return self.stages.segment(batch) | {"begun": begun}


class _Classifying(_Segmenting):
    def __call__(self, batch: Batch) -> Batch:
        return self.stages.label(batch)


def ray_data(work: Workload, count: int) -> Iterator[Batch]:
    """Ray Data as its pages on batch inference write it: read, map, a class for each model, an actor each."""
    import ray

    ray.init("local", log_to_driver=False, include_dashboard=False)
    decode = Stages(work).decode
    # Together the actors leave a CPU to reading and decoding, which on two CPUs would wait for ever.
    given = {"batch_size": ROWS_PER_SHARD, "fn_constructor_args": (str(work.folder),), "concurrency": 1}
    dataset = (
        ray.data.read_parquet([str(file) for file in work.files(count)], columns=["image_id", "image", "media_type"])
        .map_batches(decode)
        .map_batches(_Segmenting, num_cpus=0.5, **given)
        .map_batches(_Classifying, num_cpus=0.5, **given)
    )
    yield from dataset.iter_batches(batch_size=None)


def daft_class(work: Workload, count: int) -> Iterator[Batch]:
    """Daft as its pages on class UDFs write it: read, a class with the models, a batch method."""
    import daft

    text, whole, real = daft.DataType.string(), daft.DataType.int64(), daft.DataType.float64()
    answer = daft.DataType.struct({"mask_counts": text, "height": whole, "width": whole, "label": text, "begun": real})

    @daft.cls(max_concurrency=1)
    class Scoring:
        def __init__(self, folder: str):
            self.stages = Stages(Workload(Path(folder)))

        @daft.method.batch(return_dtype=answer, unnest=True, batch_size=ROWS_PER_SHARD)
        def score(self, image_id: daft.Series, image: daft.Series, media_type: daft.Series) -> list[dict[str, Any]]:
            begun = time.time()
            given = {"image_id": image_id, "image": image, "media_type": media_type}
            batch = {name: np.array(column.to_pylist(), object) for name, column in given.items()}
            done = self.stages.models(self.stages.decode(batch)) | {"begun": np.full(len(batch["image_id"]), begun)}
            columns = {name: done[name].tolist() for name in ("mask_counts", "height", "width", "label", "begun")}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    frame = daft.read_parquet([str(file) for file in work.files(count)])
    scored = Scoring(str(work.folder)).score(frame["image_id"], frame["image"], frame["media_type"])
    for part in frame.select(frame["image_id"], scored).to_arrow_iter():
        yield {name: np.array(part.column(name).to_pylist(), object) for name in part.schema.names}


WAYS: dict[str, Callable[[Workload, int], Iterator[Batch]]] = {
    "ceiling": ceiling,
    "generator": loop_with_generator,
    "predictor": loop_with_predictor,
    "dataloader": dataloader,
    "ray": ray_data,
    "daft": daft_class,
}


def main() -> int:
    way, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    made = WAYS[way](Workload(folder), count)
    rows, moments = [], []
    for batch in made:
        rows.append(batch)
        moments.append(time.time())
    columns = {name: list(chain(*(batch[name].tolist() for batch in rows))) for name in KEPT}
    pq.write_table(pa.table(columns), folder / f"{way}.parquet")
    images = len(columns["image_id"])
    if "begun" in rows[0]:
        seconds = moments[-1] - min(float(batch["begun"].min()) for batch in rows)
    else:
        images, seconds = images - len(rows[0]["image_id"]), moments[-1] - moments[0]
    print(json.dumps({"images": images, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
