"""The stage that makes shard rows of files: each image as a viewer shows it, without what identifies a person."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medfocus.pipeline.identity.attributes import text_of
from medfocus.pipeline.identity.dates import study_day, year_of
from medfocus.pipeline.identity.describe import Identity, describe
from medfocus.pipeline.ingest.items import DICOM, NIFTI, Item, Naming
from medfocus.pipeline.ingest.source import EMPTY
from medfocus.stages import dicom
from medfocus.stages.batch import Batch, well
from medfocus.stages.burned_in import BurnedInText
from medfocus.stages.decode import READERS, failing, readable_media_type
from medfocus.stages.dicom import Display, Frame, FrameChoice
from medfocus.stages.formats import media_types, nifti
from medfocus.stages.formats.encode import encode_png
from medfocus.stages.formats.levels import Levels
from medfocus.stages.formats.picture import ImageError
from medfocus.stages.formats.strip import hides_pixels, without_metadata
from medfocus.stages.likeness import perceptual_hash, pixels_digest

# Columns that come from a DICOM header as they are.
_FROM_HEADER = (
    *("study_id", "series_id", "instance_id", "modality", "view", "laterality", "body_part", "age_band", "sex"),
    *("manufacturer", "device_model"),
)
# Media types of which the bytes stay, without metadata. Others are stored as PNG.
_KEPT = {media_types.PNG, media_types.JPEG}


@dataclass(frozen=True)
class ConvertSettings:
    """How files become rows.

    Args:
        display: how samples become pixels.
        choice: which frames of a file with several are packed.
        dates: what ``study_day`` is: the ``offset`` from the patient's first study in days, the ``year``, or ``none``.
    """

    display: Display
    choice: FrameChoice
    dates: str


class Convert:
    """Makes shard rows of files.

    Columns taken:
        item: ``Item`` [N].
        content: bytes [N], of rows that have not failed.
        source_uri: str [N].

    Columns added:
        rows: list [N] of shard rows, each a dict by column of the record; empty where the row has failed.
        stage: str [N], the failure columns (``stages.batch``), as ``error`` and ``message``.

    Args:
        settings: how files become rows.
        naming: names of rows.
        burned_in: finds text in pixels.

    Attributes:
        not_looked_at: number of images without a header in which no text was looked for.
    """

    def __init__(self, settings: ConvertSettings, naming: Naming, burned_in: BurnedInText):
        self.settings, self.naming, self.burned_in = settings, naming, burned_in
        self.not_looked_at = 0

    def __call__(self, batch: Batch) -> Batch:
        """Convert the files of a batch."""
        rows = np.empty(len(batch["image_id"]), object)
        rows[:] = [[] for _ in rows]
        for place in well(batch):
            item, content = batch["item"][place], batch["content"][place]
            with failing(batch, place, "pack"):
                rows[place] = list(self.rows(item, content, batch["source_uri"][place]))
        return batch | {"rows": rows}

    def rows(self, item: Item, content: bytes, uri: str) -> Iterator[dict[str, Any]]:
        """The shard rows of one file.

        Raises:
            ImageError: it cannot be shown, or its pixels may identify a person.
        """
        if not content:
            raise ImageError(*EMPTY)
        if item.kind == DICOM:
            yield from self._dicom_rows(item, content, uri)
        elif item.kind == NIFTI:
            frames = nifti.read_slices(content, self.settings.choice, self.settings.display)
            yield from (self._frame_row(item, frame, uri, {}, None) for frame in frames)
        else:
            yield self._picture_row(item, content, uri)

    def _dicom_rows(self, item: Item, content: bytes, uri: str) -> Iterator[dict[str, Any]]:
        header = dicom.read_header(io.BytesIO(content))
        columns = self._columns(describe(header, self.naming.pseudonyms), item)
        several = (text_of(header, "NumberOfFrames") or "1").strip() not in ("0", "1")
        for frame in dicom.read_frames(content, self.settings.choice, self.settings.display):
            yield self._frame_row(item, frame, uri, columns, header, several=several)

    def _columns(self, identity: Identity, item: Item) -> dict[str, Any]:
        """The columns of a shard row that come from a DICOM header."""
        day = identity.study_date
        if self.settings.dates == "offset":
            day = study_day(day, item.first_day)
        else:
            day = year_of(day) if self.settings.dates == "year" and day is not None else None
        return {name: getattr(identity, name) for name in _FROM_HEADER} | {"study_day": day}

    def _frame_row(
        self, item: Item, frame: Frame, uri: str, columns: Mapping[str, Any], header: Any, *, several: bool = True
    ) -> dict[str, Any]:
        shown = _shown(frame)
        finding = self.burned_in.check(shown, header)
        if finding.action == "quarantine":
            raise ImageError("BurnedInText", finding.reason)
        if finding.action == "black_out":  # with 8 bits: what the window hides may hold text too
            shown = finding.pixels
            frame = replace(frame, pixels=shown, window=None)
        return self._row(item, encode_png(frame.pixels), media_types.PNG, shown, uri) | {
            "image_id": item.image_id(frame.number if several else None),
            "frame": frame.number if several else None,
            "spacing": frame.spacing,
            "position": frame.position,
            "window": frame.window,
            **columns,
        }

    def _picture_row(self, item: Item, content: bytes, uri: str) -> dict[str, Any]:
        media_type = readable_media_type(content)
        picture = READERS[media_type](content, self.settings.display.max_pixels)
        pixels = picture.upright()
        finding = self.burned_in.check(pixels, None)
        self.not_looked_at += not finding.looked
        if finding.action == "quarantine":
            raise ImageError("BurnedInText", finding.reason)
        if finding.action == "keep" and media_type in _KEPT and not hides_pixels(content, media_type):
            return self._row(item, without_metadata(content, media_type), media_type, pixels, uri)
        return self._row(item, encode_png(finding.pixels), media_types.PNG, finding.pixels, uri)

    def _row(self, item: Item, image: bytes, media_type: str, shown: np.ndarray, uri: str) -> dict[str, Any]:
        return {
            "image_id": item.image_id(None),
            "image": image,
            "media_type": media_type,
            "label": item.label,
            "patient_id": item.patient,
            "site": item.site,
            "split": item.split,
            "pixels_sha256": pixels_digest(shown),
            "likeness": perceptual_hash(shown),
            "source_uri": self.naming.source_uri(item.item, uri),
            "sha256": hashlib.sha256(image).hexdigest(),
        }


def _shown(frame: Frame) -> np.ndarray:
    """The pixels of a frame as a viewer shows them, uint8 [H, W] or [H, W, 3]."""
    if frame.window is None:
        return frame.pixels
    table = Levels(np.arange(1 << 16, dtype=np.float64), frame.window, None).bytes()
    return table[frame.pixels]
