"""The one stream behind ``embed`` and ``score``: shards are read, decoded, segmented, embedded and committed.

A block is a shard: it passes each stage whole and is committed by itself, so that what is finished survives.
Rows are never dropped on the way; a row that fails carries its failure to the commit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from cluster.resources import Plan, Share
from pipeline import checkpoints
from pipeline.actors import EmbedActor, Prompts, SegmentActor
from pipeline.commit import Output
from pipeline.config import Config
from pipeline.manifest import ShardEntry
from pipeline.reading import read_and_decode
from pipeline.storage import Location
from pipeline.writing import Version, commit_rows
from stages.weights import sam2_image_size


def stream(
    shards: Sequence[ShardEntry],
    source: Location,
    output: Output,
    config: Config,
    plan: Plan,
    *,
    version: Version,
    prompts: Prompts | None,
) -> Iterator[dict[str, Any]]:
    """Run the shards through the stages; yields a summary of each as it is committed.

    Args:
        shards: to read, below ``source``.
        output: where their rows go.
        config: of the stages.
        plan: sizes of tasks and actor pools.
        version: what makes the rows.
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
            fn_kwargs={"output": output, "version": version},
        )
    )
    yield from dataset.iter_rows()


def _pool(share: Share) -> dict[str, Any]:
    pool = ActorPoolStrategy(size=share.actors, max_tasks_in_flight_per_actor=2)
    return {"compute": pool, "num_cpus": share.cpus, "num_gpus": share.gpus}
