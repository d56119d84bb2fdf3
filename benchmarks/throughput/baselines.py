"""Programs that score the same shards with the same weights as ``score``.

Usage: ``python -m benchmarks.throughput.baselines BASELINE FOLDER COUNT``

Each baseline is a generator of batches with ``image_id``, ``mask_counts``, ``height``, ``width`` and ``label``. Its
rows are written to ``FOLDER/BASELINE.parquet``. Prints one line of JSON with the number of images and their seconds.
Where batches have the column ``began``, all images count, from the moment when the first batch began. Else those after
the first batch count, from the moment when that batch was finished.
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
from benchmarks.throughput.workload import ROWS_PER_SHARD, Stages, Workload, actor_count
from medfocus.pipeline.execution.actor import ENVIRONMENT
from medfocus.stages.batch import Batch
from medfocus.stages.batched_sam2 import ImageFeatures
from medfocus.stages.masks import bounding_box, encode_mask, main_piece
from medfocus.stages.regions import Candidates, score_masks
from medfocus.stages.segment import Segment
from medfocus.stages.segment_settings import SegmentSettings

# Columns that every baseline gives.
COLUMNS = ("image_id", "mask_counts", "height", "width", "label")


def ceiling(workload: Workload, count: int) -> Iterator[Batch]:
    """The models alone, in as many processes as ``score`` has actors, each with the same number of shards.

    Images are decoded before the clock starts. There is no Ray, and nothing is written.
    """
    processes = actor_count()
    os.environ |= ENVIRONMENT
    context, shards = get_context("spawn"), len(workload.files(count)) // processes
    barrier, results = context.Barrier(processes), context.Queue()
    for part in range(processes):
        arguments = (str(workload.folder), range(part * shards, (part + 1) * shards), barrier, results)
        context.Process(target=_run_models, args=arguments, daemon=True).start()
    for _ in range(processes * shards):
        yield results.get(timeout=600)


def _run_models(folder: str, shards: range, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    workload = Workload(Path(folder))
    stages = Stages(workload)
    batches = list(workload.batches(shards.stop * ROWS_PER_SHARD))[shards.start :]
    decoded = [stages.decode(batch) for batch in batches]
    stages.models({name: column[:1] for name, column in decoded[0].items()})
    barrier.wait(timeout=600)
    for batch in decoded:
        began = np.full(len(batch["image_id"]), time.time())
        scored = stages.models(batch)
        results.put({name: scored[name] for name in COLUMNS} | {"began": began})


def loop_with_generator(workload: Workload, count: int) -> Iterator[Batch]:
    """The usual program: SAM2's automatic generator with its default settings, image by image, then CLIP."""
    stages = Stages(workload)
    generator = automatic_generator(stages.segment.model)
    for decoded in map(stages.decode, workload.batches(count)):
        for row, pixels in enumerate(decoded["pixels"]):
            union = best_union(generator.generate(np.repeat(pixels, 3, axis=2)), pixels.shape[:2])
            side = np.full(1, stages.decode.size)
            mask = {"mask_counts": np.array([encode_mask(union)], object), "height": side, "width": side}
            box = bounding_box(main_piece(union))[None]
            image = {name: column[row : row + 1] for name, column in decoded.items()}
            yield stages.label(image | mask | {"region_box": box})


class PredictorSegment(Segment):
    """The region finder over the sam2 package's predictor, one image at a time, as the package's examples call it.

    Args:
        model: SAM2.
        settings: those of ``Segment``; ``batch_size`` is ignored.
    """

    def __init__(self, model: Any, settings: SegmentSettings):
        super().__init__(model, replace(settings, batch_size=1))
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        self.predictor = SAM2ImagePredictor(model)
        fit_to(self.predictor, model.image_size)

    def encode(self, pixels: torch.Tensor) -> ImageFeatures:
        """Features of one image, uint8 [1, S, S, 1]."""
        self.predictor.set_image(pixels[0].expand(-1, -1, 3).numpy())
        features = self.predictor._features
        return ImageFeatures(features["image_embed"], tuple(features["high_res_feats"]))

    def propose(self, features: ImageFeatures) -> Iterator[Candidates]:
        """The masks of all clicks, from one call of the predictor."""
        labels = torch.ones(len(self.points), 1, dtype=torch.int, device=self.device)
        clicks = self.points[:, None]
        _, iou, logits = self.predictor._predict(clicks, labels, multimask_output=True, return_logits=True)
        masks, image = logits.flatten(0, 1), torch.zeros(iou.numel(), dtype=torch.long, device=self.device)
        score = score_masks(masks, iou.flatten(), self.settings)
        yield Candidates(image, masks, score, clicks.expand((*iou.shape, 2)).flatten(0, 1))


def loop_with_predictor(workload: Workload, count: int) -> Iterator[Batch]:
    """The plain program: SAM2's predictor in a loop, with the same clicks and the same choice of regions."""
    stages = Stages(workload)
    stages.segment = PredictorSegment(stages.segment.model, workload.config.segment.settings)
    for decoded in map(stages.decode, workload.batches(count)):
        for row in range(len(decoded["image_id"])):
            yield stages.models({name: column[row : row + 1] for name, column in decoded.items()})


class _Shards(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Each item is a shard, decoded in the worker process that reads it."""

    def __init__(self, batches: list[Batch], decode: Callable[[Batch], Batch]):
        self.batches, self.decode = batches, decode

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.decode(self.batches[index])


def dataloader(workload: Workload, count: int) -> Iterator[Batch]:
    """A PyTorch DataLoader with two worker processes, and the batched models; nothing is written."""
    stages = Stages(workload)
    shards = _Shards(list(workload.batches(count)), stages.decode)
    loader = torch.utils.data.DataLoader(shards, batch_size=None, num_workers=2, collate_fn=lambda item: item)
    yield from map(stages.models, loader)


class _SegmentActor:
    def __init__(self, folder: str):
        torch.set_num_threads(2)
        self.stages = Stages(Workload(Path(folder)))

    def __call__(self, batch: Batch) -> Batch:
        began = np.full(len(batch["image_id"]), time.time())  # Ray Data joins blocks at the end: take the time here
        return self.stages.segment(batch) | {"began": began}


class _LabelActor(_SegmentActor):
    def __call__(self, batch: Batch) -> Batch:
        return self.stages.label(batch)


def ray_data(workload: Workload, count: int) -> Iterator[Batch]:
    """Ray Data as its guide to batch inference shows it: read, map, and one actor for each model."""
    import ray

    ray.init("local", log_to_driver=False, include_dashboard=False)
    decode = Stages(workload).decode
    # Half a CPU each: on two CPUs, two whole ones would leave none for reading and decoding.
    options = {"batch_size": ROWS_PER_SHARD, "fn_constructor_args": (str(workload.folder),), "concurrency": 1}
    dataset = (
        ray.data.read_parquet(
            [str(file) for file in workload.files(count)], columns=["image_id", "image", "media_type"]
        )
        .map_batches(decode)
        .map_batches(_SegmentActor, num_cpus=0.5, **options)
        .map_batches(_LabelActor, num_cpus=0.5, **options)
    )
    yield from dataset.iter_batches(batch_size=None)


def daft_class(workload: Workload, count: int) -> Iterator[Batch]:
    """Daft as its guide to class UDFs shows it: read, a class with the models, and a batch method."""
    import daft

    text, whole, real = daft.DataType.string(), daft.DataType.int64(), daft.DataType.float64()
    answer = daft.DataType.struct({"mask_counts": text, "height": whole, "width": whole, "label": text, "began": real})

    @daft.cls(max_concurrency=1)
    class Scorer:
        def __init__(self, folder: str):
            self.stages = Stages(Workload(Path(folder)))

        @daft.method.batch(return_dtype=answer, unnest=True, batch_size=ROWS_PER_SHARD)
        def score(self, image_id: daft.Series, image: daft.Series, media_type: daft.Series) -> list[dict[str, Any]]:
            began = time.time()
            series = {"image_id": image_id, "image": image, "media_type": media_type}
            batch = {name: np.array(column.to_pylist(), object) for name, column in series.items()}
            scored = self.stages.models(self.stages.decode(batch)) | {"began": np.full(len(batch["image_id"]), began)}
            columns = {name: scored[name].tolist() for name in ("mask_counts", "height", "width", "label", "began")}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    frame = daft.read_parquet([str(file) for file in workload.files(count)])
    scored = Scorer(str(workload.folder)).score(frame["image_id"], frame["image"], frame["media_type"])
    for part in frame.select(frame["image_id"], scored).to_arrow_iter():
        yield {name: np.array(part.column(name).to_pylist(), object) for name in part.schema.names}


BASELINES: dict[str, Callable[[Workload, int], Iterator[Batch]]] = {
    "ceiling": ceiling,
    "generator": loop_with_generator,
    "predictor": loop_with_predictor,
    "dataloader": dataloader,
    "ray": ray_data,
    "daft": daft_class,
}


def main() -> int:
    """Run one baseline, write its rows, and print its images and seconds."""
    baseline, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    batches, moments = [], []
    for batch in BASELINES[baseline](Workload(folder), count):
        batches.append(batch)
        moments.append(time.time())
    columns = {name: list(chain(*(batch[name].tolist() for batch in batches))) for name in COLUMNS}
    pq.write_table(pa.table(columns), folder / f"{baseline}.parquet")
    images = len(columns["image_id"])
    if "began" in batches[0]:
        seconds = moments[-1] - min(float(batch["began"].min()) for batch in batches)
    else:
        images, seconds = images - len(batches[0]["image_id"]), moments[-1] - moments[0]
    print(json.dumps({"images": images, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
