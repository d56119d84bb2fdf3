"""The task that packs a portion: it reads items, converts them, writes shards, and at last the index of the portion."""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from medfocus.pipeline.config import Config, PackSection
from medfocus.pipeline.data import index, records
from medfocus.pipeline.data.index import PACKED
from medfocus.pipeline.data.manifest import ShardEntry
from medfocus.pipeline.data.storage import AccessError, Location, ServiceError, StorageError
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.ingest import containers
from medfocus.pipeline.ingest.convert import Convert, ConvertSettings
from medfocus.pipeline.ingest.items import ARCHIVE, DICOM, UNCHANGED, Item, Naming
from medfocus.pipeline.ingest.source import read_with_retries, refusal_of
from medfocus.pipeline.isolation.failure import FAILURE
from medfocus.pipeline.isolation.isolation import Isolation
from medfocus.pipeline.isolation.journal import open_journal
from medfocus.stages.batch import Batch, fail, start
from medfocus.stages.burned_in import BurnedInText
from medfocus.stages.burned_in_settings import BurnedInSettings
from medfocus.stages.dicom import Display, FrameChoice

# Items, and bytes of their files, that are converted at once. A poison row costs the others of its group a second try.
_GROUP_ITEMS, _GROUP_BYTES = 32, 32 << 20
# Reads of small objects wait for the network, not for a processor.
_READERS = 16


@dataclass(frozen=True)
class Portion:
    """Items that one task packs.

    Args:
        items: the items; those of one archive are neighbours, in its order.
    """

    items: tuple[Item, ...]

    @property
    def id(self) -> str:
        """A digest of the items and their contents, which names the shards and the index file."""
        text = json.dumps([(item.item, item.stamp, item.revision) for item in self.items])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Packer:
    """Packs portions; it travels to workers.

    Args:
        origin: the source.
        target: prefix to write to.
        naming: names of items and rows.
        convert: how files become rows.
        burned_in: how text in pixels is found.
        section: bounds of a shard.
        journal: handle of the run's journal.
    """

    origin: Location
    target: Location
    naming: Naming
    convert: ConvertSettings
    burned_in: BurnedInSettings
    section: PackSection
    journal: Any

    def index_entry(self, item: Item) -> dict[str, Any]:
        """What the index says of an item whatever its outcome. Only the key can read the days."""
        study, series, instance, accession, study_date = item.ids
        days = {"first_day": item.first_day, "study_date": None if study_date is None else int(study_date)}
        patient, mask = item.patient, self.naming.pseudonyms.mask_day
        return {
            "item": item.item,
            "container": item.container,
            "stamp": item.stamp,
            "kind": item.kind,
            "patient_id": item.patient,
            "split": item.split,
            "study_id": study,
            "series_id": series,
            "instance_id": instance,
            "accession": accession,
            "site": item.site,
            **{name: mask(patient, day) for name, day in days.items() if patient is not None and day is not None},
        }

    def pack(self, portion: Portion) -> dict[str, int]:
        """Pack a portion. It is committed by its index file, which is written last.

        Returns:
            Number of ``items``, of ``rows`` written, of ``refused`` items, and of images ``not_looked_at``.

        Raises:
            AccessError: storage refuses the credentials.
            MedFocusError: storage does not answer, or a shard cannot be written.
        """
        convert = Convert(self.convert, self.naming, _burned_in_text(self._text_settings(portion)))
        isolation = Isolation("pack", self.journal)
        writer = _ShardWriter(self, portion.id)
        entries: list[dict[str, Any]] = []
        for number, batch in enumerate(self._batches(portion)):
            batch["shard"] = np.full(len(batch["image_id"]), f"{portion.id}/{number}", object)
            done = isolation(convert, batch)
            if done[FAILURE][0]:
                raise MedFocusError(f"{self.target.uri}: a portion could not be packed: {done[FAILURE][0]}")
            for place, item in enumerate(done["item"]):
                entries += writer.add(item, done["rows"][place], done["error"][place], done["message"][place])
        writer.flush()
        entries += [
            {"item": name, "stamp": stamp, "outcome": ARCHIVE}
            for name, stamp in sorted({(item.container, item.stamp) for item in portion.items if item.container})
        ]
        index.write_portion(self.target, portion.id, entries, writer.shards)
        refused = sum(entry["outcome"] not in (PACKED, UNCHANGED, ARCHIVE) for entry in entries)
        return {"items": len(portion.items), "rows": sum(shard.rows for shard in writer.shards), "refused": refused} | {
            "not_looked_at": convert.not_looked_at
        }

    def _text_settings(self, portion: Portion) -> BurnedInSettings:
        """How text is found in a portion. Where no header can tell of a risk, no engine is loaded for it."""
        needed = self.burned_in.ocr == "always" or any(item.kind == DICOM for item in portion.items)
        return self.burned_in if needed else replace(self.burned_in, ocr="never")

    def _batches(self, portion: Portion) -> Iterator[Batch]:
        """The items with their contents, in groups of bounded size."""
        group: list[tuple[Item, Any]] = []
        size = 0
        for item, content in self._contents(portion.items):
            weight = len(content) if isinstance(content, bytes) else 0
            if group and (len(group) == _GROUP_ITEMS or size + weight > _GROUP_BYTES):
                yield self._batch(group)
                group, size = [], 0
            group.append((item, content))
            size += weight
        if group:
            yield self._batch(group)

    def _batch(self, group: Sequence[tuple[Item, Any]]) -> Batch:
        columns = {name: np.empty(len(group), object) for name in ("image_id", "item", "content", "source_uri")}
        batch = start(columns | {FAILURE: np.full(len(group), "", object)})
        for place, (item, content) in enumerate(group):
            batch["image_id"][place], batch["item"][place], batch["content"][place] = item.item, item, content
            batch["source_uri"][place] = (self.origin / item.file).uri
            if not isinstance(content, bytes):
                fail(batch, place, "pack", *content)
        return batch

    def _contents(self, items: Sequence[Item]) -> Iterator[tuple[Item, bytes | tuple[str, str]]]:
        """Each item with its content, or with the error class and the message of what cannot be read."""
        with ThreadPoolExecutor(_READERS) as readers:
            for in_archive, run in groupby(items, lambda item: item.file if item.member else ""):
                members = list(run)
                if in_archive:
                    yield from self._members(in_archive, members)
                else:
                    for start_ in range(0, len(members), _GROUP_ITEMS):
                        part = members[start_ : start_ + _GROUP_ITEMS]
                        yield from zip(part, readers.map(self._read, part), strict=True)

    def _read(self, item: Item) -> bytes | tuple[str, str]:
        location = self.origin / item.file
        try:
            return read_with_retries(location)
        except (AccessError, ServiceError):
            raise
        except StorageError as error:
            return refusal_of(error, location)

    def _members(self, file: str, items: Sequence[Item]) -> Iterator[tuple[Item, bytes | tuple[str, str]]]:
        """The members of an archive, as they are read from it."""
        wanted = {item.member: item for item in items}
        with (self.origin / file).open() as stream:
            for name, content in containers.open_members(stream, wanted):
                yield wanted[name], content if isinstance(content, bytes) else (content.error, content.message)


@dataclass
class _ShardWriter:
    """Cuts the rows of a portion into shards."""

    packer: Packer
    portion: str
    shards: list[ShardEntry] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    @property
    def name(self) -> str:
        """File name of the shard that is filled now."""
        return index.shard_name(self.portion, len(self.shards))

    def add(self, item: Item, rows: Sequence[dict[str, Any]], error: str, message: str) -> Iterable[dict[str, Any]]:
        """Add the rows of an item; returns its entries for the index."""
        entry = self.packer.index_entry(item)
        if error:
            return [entry | {"outcome": error, "message": message}]
        if item.digests and item.digests == tuple(row["pixels_sha256"] for row in rows):
            same = replace(item, revision=item.revision - 1)
            return [entry | {"outcome": UNCHANGED, "image_id": same.image_id(None)}]
        return [entry | self._add_row(row) for row in rows]

    def _add_row(self, row: dict[str, Any]) -> dict[str, Any]:
        section, weight = self.packer.section, len(row["image"])
        full = len(self.rows) == section.rows_per_shard or self.size + weight > section.bytes_per_shard
        if self.rows and full:
            self.flush()
        place = {"outcome": PACKED, "shard": self.name, "row": len(self.rows)}
        self.rows.append(row)
        self.size += weight
        return place | {name: row[name] for name in ("image_id", "pixels_sha256", "likeness", "label")}

    def flush(self) -> None:
        """Write the shard that is filled now, if it has rows."""
        if not self.rows:
            return
        names = {name for row in self.rows for name in row}
        content = records.encode(records.shard_table({name: [row.get(name) for row in self.rows] for name in names}))
        (self.packer.target / self.name).write(content)
        labelled = sum(row["label"] is not None for row in self.rows)
        digest = hashlib.sha256(content).hexdigest()
        self.shards.append(ShardEntry(self.name, len(self.rows), len(content), digest, labelled))
        self.rows, self.size = [], 0


def packer_of(origin: Location, target: Location, naming: Naming, config: Config) -> Packer:
    """The packer of a configuration.

    Args:
        origin: the source.
        target: prefix to write to.
        naming: names of items and rows.
        config: ``pack``, ``decode`` and ``burned_in``.
    """
    return Packer(
        origin=origin,
        target=target,
        naming=naming,
        convert=ConvertSettings(
            Display(config.decode.max_pixels, 16 if config.pack.bits == 16 else 8, config.pack.window),
            FrameChoice(config.pack.frames, config.pack.frame_step),
            config.deid.dates,
        ),
        burned_in=config.burned_in.settings(),
        section=config.pack,
        journal=open_journal(),
    )


@functools.cache
def _burned_in_text(settings: BurnedInSettings) -> BurnedInText:
    """The finder of text in this process; its models are loaded once."""
    return BurnedInText(settings)


def pack_portion(row: dict[str, Any], packer: Packer) -> dict[str, Any]:
    """Pack the portion of a row of Ray Data, which has its items as JSON in ``items``."""
    items = [
        Item(**item | {name: tuple(item[name]) for name in ("digests", "ids")}) for item in json.loads(row["items"])
    ]
    portion = Portion(tuple(items))
    return packer.pack(portion)


def as_row(portion: Portion) -> dict[str, str]:
    """A portion as a row of Ray Data."""
    return {"items": json.dumps([asdict(item) for item in portion.items])}
