"""The one stream behind ``embed`` and ``score``: shards are read, decoded, segmented, embedded and committed.

A block is a shard: it passes each stage whole and is committed by itself, so that what is finished survives.
Rows are never dropped on the way; a row that fails carries its failure to the commit.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy

import stages  # noqa: F401  before anything imports torchvision
from cluster.resources import Plan, Share
from pipeline import checkpoints, records
from pipeline.commit import Output
from pipeline.config import Config
from pipeline.errors import MedFocusError
from pipeline.manifest import ShardEntry
from pipeline.storage import Location
from stages.batch import well
from stages.classify import Classify
from stages.decode import Decode
from stages.embed import Embed
from stages.prompted_clip import PromptedCLIP, PromptSettings
from stages.segment import Segment
from stages.tower import ImageTower
from stages.weights import load_clip, load_sam2, load_tokenizer, sam2_image_size

# Columns that go with an image from the shard to the end; null travels as an empty string.
CARRIED = ("image_id", "label", "patient_id", "site", "source_uri")


@dataclass(frozen=True)
class Prompts:
    """The learned part of a model and what it is called in the outputs."""

    settings: PromptSettings
    state: dict[str, np.ndarray]
    version: str


def stream(
    shards: Sequence[ShardEntry],
    source: Location,
    output: Output,
    config: Config,
    plan: Plan,
    *,
    model_key: str,
    prompts: Prompts | None,
) -> Iterator[dict[str, Any]]:
    """Run the shards through the stages; yields a summary of each as it is committed.

    Args:
        shards: to read, below ``source``.
        output: where their rows go.
        config: of the stages.
        plan: sizes of tasks and actor pools.
        model_key: what produced feature rows.
        prompts: of the model that scores; None keeps features of the labelled rows instead.

    Yields:
        ``{"rows", "written", "quarantined"}`` of one shard; ``rows`` counts only labelled ones for features.
    """
    sam2 = checkpoints.resolve_sam2(config.segment, config.storage)
    decode = {"size": sam2_image_size(sam2.model), "max_pixels": config.decode.max_pixels}
    items = [asdict(shard) for shard in shards]
    dataset = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            read_and_decode,
            batch_size=1,
            num_cpus=plan.decode.cpus,
            fn_kwargs={"source": source, "decode": decode, "labelled_only": prompts is None},
        )
        .map_batches(
            SegmentActor,
            batch_size=None,
            fn_constructor_args=(config, plan.segment, plan.device),
            **_pool(plan.segment),
        )
        .map_batches(
            EmbedActor,
            batch_size=None,
            fn_constructor_args=(config, plan.embed, plan.device, prompts),
            **_pool(plan.embed),
        )
        .map_batches(
            commit_rows,
            batch_size=None,
            num_cpus=plan.commit.cpus,
            fn_kwargs={"output": output, "model_key": model_key, "prompts": prompts},
        )
    )
    yield from dataset.iter_rows()


def _pool(share: Share) -> dict[str, Any]:
    pool = ActorPoolStrategy(size=share.actors, max_tasks_in_flight_per_actor=2)
    return {"compute": pool, "num_cpus": share.cpus, "num_gpus": share.gpus}


def read_shard(shard: ShardEntry, source: Location) -> pa.Table:
    """The rows of a shard, checked against the manifest.

    Raises:
        UsageError: it is not a shard, or a column is missing.
        MedFocusError: its content is not what the manifest names.
    """
    location = source / shard.name
    content = location.read()
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise MedFocusError(f"{location.uri}: has changed since it was packed; pack the images again")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except pa.ArrowInvalid as error:
        raise MedFocusError(f"{location.uri}: not a Parquet file; pack the images again") from error
    records.check_record(file.schema_arrow, records.SHARD, location.uri)
    return file.read()


def read_and_decode(
    batch: dict[str, np.ndarray], source: Location, decode: dict[str, int], labelled_only: bool
) -> dict[str, np.ndarray]:
    """One shard, named by its manifest entry, to decoded rows."""
    shard = ShardEntry(**{name: column[0].item() if hasattr(column[0], "item") else column[0] for name, column in batch.items()})
    table = read_shard(shard, source)
    if labelled_only:
        table = table.filter(table["label"].is_valid())
    rows = {name: np.array([value or "" for value in table[name].to_pylist()], object) for name in CARRIED}
    rows["image"] = table["image"].to_numpy(zero_copy_only=False)
    rows["media_type"] = table["media_type"].to_numpy(zero_copy_only=False)
    # A label of the shard is the truth; the stages' ``label`` is what the model predicts.
    rows["truth"] = rows.pop("label")
    decoded = Decode(**decode)(rows)
    del decoded["media_type"]
    return decoded | {"shard": np.full(table.num_rows, shard.sha256, object), "shard_rows": np.full(table.num_rows, table.num_rows)}


class SegmentActor:
    """SAM2 in an actor."""

    def __init__(self, config: Config, share: Share, device: str):
        torch.set_num_threads(share.threads)
        source = checkpoints.resolve_sam2(config.segment, config.storage)
        options = config.segment.model_dump(exclude={"model", "weights", "sha256"})
        self.stage = Segment(load_sam2(source.model, source.checkpoint, device=device, seed=config.seed), **options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.stage(batch)


class EmbedActor:
    """CLIP in an actor; with prompts it classifies too, so that tokens never leave it."""

    def __init__(self, config: Config, share: Share, device: str, prompts: Prompts | None):
        torch.set_num_threads(share.threads)
        source = checkpoints.resolve_clip(config.clip, config.storage)
        clip = load_clip(source.model, source.checkpoint, device=device, seed=config.seed)
        region = config.model.focus in ("masked_image", "both")
        self.embed = Embed(ImageTower(clip, config.clip.cut), region=region, batch_size=config.clip.batch_size)
        self.classify = None
        if prompts is not None:
            model = PromptedCLIP(clip, load_tokenizer(source.model), prompts.settings).to(device)
            model.load_learned({name: torch.tensor(value) for name, value in prompts.state.items()})
            self.classify = Classify(model, accept_at=config.score.accept_at, batch_size=config.clip.batch_size)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        embedded = self.embed(batch)
        return self.classify(embedded) if self.classify else embedded


def commit_rows(
    batch: dict[str, np.ndarray], output: Output, model_key: str, prompts: Prompts | None
) -> dict[str, list[int]]:
    """Write the rows of one shard; returns its summary as a batch of one row."""
    rows = len(batch["image_id"])
    shards = set(batch["shard"].tolist())
    if len(shards) != 1 or rows != batch["shard_rows"][0]:
        raise MedFocusError(f"a block of {rows} rows of {len(shards)} shards reached the commit; please report this")
    good = well(batch)
    bad = np.setdiff1d(np.arange(rows), good)
    table = _features(batch, good, model_key) if prompts is None else _predictions(batch, good, prompts)
    output.commit(shards.pop(), table, _quarantine(batch, bad))
    return {"rows": [rows], "written": [len(good)], "quarantined": [len(bad)]}


def _or_null(values: np.ndarray) -> list[str | None]:
    return [value or None for value in values.tolist()]


def _who(batch: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    return {
        "image_id": batch["image_id"][rows].tolist(),
        "patient_id": _or_null(batch["patient_id"][rows]),
        "site": _or_null(batch["site"][rows]),
    }


def _features(batch: dict[str, np.ndarray], rows: np.ndarray, model_key: str) -> pa.Table:
    region = "region_tokens" in batch
    tokens = batch["tokens"]
    schema = records.feature_schema(tokens.shape[1], tokens.shape[2], region)
    columns = _who(batch, rows) | {"label": batch["truth"][rows].tolist(), "model_key": [model_key] * len(rows)}
    for name in ("tokens", "focus", "region_tokens") if region else ("tokens", "focus"):
        flat = pa.array(np.ascontiguousarray(batch[name][rows]).reshape(-1))
        storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(batch[name].shape[1:])))
        columns[name] = pa.ExtensionArray.from_storage(schema.field(name).type, storage)
    return pa.table(columns, schema=schema)


def _predictions(batch: dict[str, np.ndarray], rows: np.ndarray, prompts: Prompts) -> pa.Table:
    sizes = np.stack([batch["height"][rows], batch["width"][rows]], axis=1).tolist()
    masks = [{"size": size, "counts": counts} for size, counts in zip(sizes, batch["mask_counts"][rows].tolist(), strict=True)]
    columns = _who(batch, rows) | {
        "label": batch["label"][rows].tolist(),
        "probabilities": list(batch["probabilities"][rows]),
        "confidence": batch["confidence"][rows],
        "decision": batch["decision"][rows].tolist(),
        "mask": masks,
        "mask_score": batch["mask_score"][rows],
        "model_version": [prompts.version] * len(rows),
    }
    return pa.table(columns, schema=records.prediction_schema(prompts.settings.classes))


def _quarantine(batch: dict[str, np.ndarray], rows: np.ndarray) -> pa.Table:
    names = ("image_id", "source_uri", "stage", "error", "message")
    return pa.table({name: batch[name][rows].tolist() for name in names}, schema=records.QUARANTINE)
