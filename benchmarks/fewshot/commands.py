"""One budget through the project's own commands: train on the drawn rows, score and evaluate the test set."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medfocus.pipeline.commands import evaluate, score, train
from medfocus.pipeline.config import Config
from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import FEATURES, RUN_FILE


def run_commands(folder: Path, config: Config, image_ids: Collection[str]) -> dict[str, Any]:
    """Train on a budget of labels, score and evaluate the test set.

    Args:
        folder: holds ``train-features`` and ``test-shards``, which ``prepare`` has written.
        config: the configuration of the commands.
        image_ids: the images whose labels the training gets.

    Returns:
        The result of ``evaluate``.
    """
    features = folder / "drawn-features"
    (features / FEATURES).mkdir(parents=True)
    (features / RUN_FILE).write_text((folder / "train-features" / RUN_FILE).read_text())
    for path in sorted((folder / "train-features" / FEATURES).glob("*.parquet")):
        table = pq.read_table(path)
        rows = table.filter(pc.is_in(table["image_id"], value_set=pa.array(list(image_ids))))
        if rows.num_rows:
            (features / FEATURES / path.name).write_bytes(records.encode(rows))
    model = train.run(config, str(features), "fewshot")["model_uri"]
    score.run(config, str(folder / "test-shards"), str(folder / "out"), model)
    return evaluate.run(config, str(folder / "out"), str(folder / "test-shards"))
