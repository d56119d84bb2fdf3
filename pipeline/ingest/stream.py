"""Streams portions of a catalog through Ray Data; each is committed by the task that packs it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from medfocus.pipeline.console.logs import Progress
from medfocus.pipeline.ingest.catalog import Catalog, file_of, groups
from medfocus.pipeline.ingest.items import Item
from medfocus.pipeline.ingest.portion import Packer, Portion, as_row, pack_portion

# Portions in one execution of Ray Data, for each CPU. An execution holds the paths of its items in Ray's store.
_PORTIONS_PER_CPU = 32
# A small archive is cut into smaller portions, so many for each CPU, unless these have fewer items than this.
_FEWEST_PORTIONS_PER_CPU, _FEWEST_ITEMS = 2, 16


@dataclass
class PackTotals:
    """What a run has packed.

    Args:
        rows: rows written.
        refused: items that are in quarantine.
        not_looked_at: images that are not DICOM, in which no text was looked for.
    """

    rows: int = 0
    refused: int = 0
    not_looked_at: int = 0


def pack_portions(catalog: Catalog, packer: Packer, cpus: int, counter: Progress) -> PackTotals:
    """Pack the items of a catalog that are due.

    Args:
        catalog: the catalog.
        packer: packs a portion in a task.
        cpus: number of CPUs of the cluster.
        counter: progress of the command; it counts items.

    Raises:
        MedFocusError: storage cannot be used; what is committed stays, and the same call goes on.
    """
    totals = PackTotals()
    due = catalog.one("SELECT count(*) FROM items WHERE due")
    items = min(packer.section.rows_per_shard, max(_FEWEST_ITEMS, due // (_FEWEST_PORTIONS_PER_CPU * max(cpus, 1))))
    for window in groups(portions_of(catalog, items, packer.section.bytes_per_shard), _PORTIONS_PER_CPU * max(cpus, 1)):
        rows = [as_row(portion) for portion in window]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            pack_portion, fn_args=(packer,), num_cpus=1
        )
        for result in dataset.iter_rows():
            totals.rows += result["rows"]
            totals.refused += result["refused"]
            totals.not_looked_at += result["not_looked_at"]
            counter.add(result["items"], result["refused"])
    return totals


def portions_of(catalog: Catalog, most_items: int, most_bytes: int) -> Iterator[Portion]:
    """Cut the items that are due into portions.

    The order has nothing to do with the names, so that a few shards are a fair sample of the archive. The members of an
    archive stay together: it is read once, by one task.

    Args:
        catalog: the catalog.
        most_items: most items of a portion that has no archive.
        most_bytes: most bytes of their files.
    """
    items: list[Item] = []
    size = 0
    for item in _due(catalog):
        bounded = len(items) >= most_items or size + item.size > most_bytes
        same_archive = bool(items and item.member and items[-1].file == item.file)
        if items and bounded and not same_archive:
            yield Portion(tuple(items))
            items, size = [], 0
        items.append(item)
        size += item.size
    if items:
        yield Portion(tuple(items))


def _due(catalog: Catalog) -> Iterator[Item]:
    """The items to pack."""
    for values in catalog.query(
        "SELECT items.item, name, member, kind, items.size, stamp, revision, label, patient, site, split, first_day,"
        " digests, CASE WHEN member = '' THEN NULL ELSE files.item END, study, series, instance, accession, study_date"
        " FROM items JOIN files ON files.number = items.file WHERE due ORDER BY sort, file, place"
    ):
        columns: dict[str, Any] = dict(zip(_COLUMNS, values, strict=False))
        columns["file"] = file_of(columns["file"])
        columns["digests"] = tuple(json.loads(columns["digests"] or "[]"))
        yield Item(**columns, ids=values[len(_COLUMNS) :])


_COLUMNS = (
    *("item", "file", "member", "kind", "size", "stamp", "revision", "label", "patient", "site", "split", "first_day"),
    *("digests", "container"),
)
