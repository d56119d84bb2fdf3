"""``medfocus quarantine``: counts the rows in quarantine by their cause."""

from collections import Counter
from typing import Any

import pyarrow.dataset as pads

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import show
from medfocus.pipeline.data.commit import FEATURES, PREDICTIONS, QUARANTINE, part_name
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import UsageError, before_start

# How the names of a shard's files begin; that of ``pack`` is another.
_SHARD_FILE = part_name("").removesuffix(".parquet")


def run(config: Config, out: str) -> dict[str, Any]:
    """Count the quarantined rows as ``count_causes`` does, and print a line for each cause."""
    result = count_causes(config, out)
    for entry in result["causes"]:
        show("{rows:>9} {stage:<9} {error:<15} such as: {message}".format(**entry))
    show(f"{result['quarantined']:>9} rows in quarantine")
    return result


def count_causes(config: Config, out: str) -> dict[str, Any]:
    """Count the quarantined rows of a prefix by stage and error.

    Args:
        config: the configuration; ``storage`` says how storage is reached.
        out: prefix that ``pack``, ``embed`` or ``score`` wrote.

    Returns:
        ``quarantined``, the number of rows, and ``causes``, the most frequent first, each with ``stage``, ``error``,
        ``rows`` and ``message``, which is that of one of the rows.

    Raises:
        UsageError: there is no such prefix.
    """
    with before_start():
        prefix = locate(out, config.storage)
        folder = prefix / QUARANTINE
        if not prefix.is_folder():
            raise UsageError(f"{prefix.uri}: nothing is there; give a prefix that pack, embed or score wrote")
        names = _files_that_count(prefix)
    counts: Counter[tuple[str, str]] = Counter()
    messages: dict[tuple[str, str], str] = {}
    if names:
        paths = [f"{folder.path}/{name}" for name in names]
        dataset = pads.dataset(paths, filesystem=folder.arrow_filesystem, format="parquet")
        for batch in dataset.to_batches(columns=["stage", "error", "message"]):
            for row in batch.to_pylist():
                cause = row["stage"], row["error"]
                counts[cause] += 1
                messages.setdefault(cause, row["message"])
    causes = [
        {"stage": stage, "error": error, "rows": rows, "message": messages[stage, error]}
        for (stage, error), rows in counts.most_common()
    ]
    return {"quarantined": counts.total(), "causes": causes}


def _files_that_count(prefix: Location) -> list[str]:
    """Names of the quarantine files of ``pack`` and of finished shards.

    A shard is finished when its rows file is there. A run that was stopped between the two files leaves a quarantine
    file whose shard is still to do.
    """
    finished = {name for folder in (PREDICTIONS, FEATURES) for name in (prefix / folder).files(".parquet")}
    names = (prefix / QUARANTINE).files(".parquet")
    return [name for name in names if name in finished or not name.startswith(_SHARD_FILE)]
