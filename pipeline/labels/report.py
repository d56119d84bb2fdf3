"""What the join of label files with an archive tells: counts, lines and classes, never a name or an id."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.labels.near_misses import NearMiss
from medfocus.pipeline.labels.reader import format_classes, warn_of_like_classes

# Most lines of a label file that a message names.
_MOST_LINES = 5


@dataclass
class FileReport:
    """What the join of one label file tells.

    Args:
        uri: URI of the file.
        rows: number of its rows.
        images: number of images by the column and the way in which a row names them.
        unused_columns: columns of which no value names an image; rows went by their next column.
        folder: whether all names have the same folder in front that is not in the path of the source; it is taken for
            the source.
        absent: number of different names and ids with a label that name no image.
        absent_lines: the first lines with such a name or id.
        ambiguous: lines whose names fit several images.
        near: for names and ids that name no image, lines by how they differ from one that does.
        other_patients: lines that give an image another patient than its header.
    """

    uri: str
    rows: int = 0
    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    unused_columns: list[str] = field(default_factory=list)
    folder: bool = False
    absent: int = 0
    absent_lines: list[int] = field(default_factory=list)
    ambiguous: list[int] = field(default_factory=list)
    near: Mapping[NearMiss, Sequence[int]] = field(default_factory=dict)
    other_patients: list[int] = field(default_factory=list)

    def log(self) -> None:
        """Log the ways in which rows were joined, and each doubt in one line."""
        loosely = [f"{count} {way}" for (column, way), count in self.images.items() if column == "file" and way]
        by_id = [f"{count} by {column}" for (column, _), count in self.images.items() if column != "file"]
        if by_id:
            log.info("labels joined: %s", ", ".join(by_id))
        if loosely:
            log.info("labels joined loosely: %s", ", ".join(loosely))
        for column in self.unused_columns:
            log.warning("labels: no value of column %s names an image; rows go by their next column", column)
        if self.folder:
            log.warning("all names have the same other folder in front of them; check that they are of these images")
        if self.absent:
            where = f", in {format_lines(self.absent_lines)}" if self.absent_lines else ""
            log.warning("%d labels name no image of the source and are left out%s", self.absent, where)
        for kind, lines in self.near.items():
            log.warning("labels: near misses: %s: %s", format_lines(lines), kind.value)
        if self.ambiguous:
            log.warning(
                "%d labels fit several images and are left out, the first in line %d; write the image's whole name",
                len(self.ambiguous),
                self.ambiguous[0],
            )
        if self.other_patients:
            log.warning(
                "labels: %s give images another patient than their headers; the headers count",
                format_lines(self.other_patients),
            )

    def as_json(self) -> dict[str, Any]:
        """The counts, for ``--json``."""
        return {
            "rows": self.rows,
            "images": {f"{column} {way}".strip(): count for (column, way), count in self.images.items()},
            "unused_columns": self.unused_columns,
            "absent": self.absent,
            "ambiguous": len(self.ambiguous),
            "near_misses": {kind.name.lower(): len(lines) for kind, lines in self.near.items()},
            "other_patients": len(self.other_patients),
        }


@dataclass
class LabelReport:
    """What the join of all label files tells.

    Args:
        files: of each file, the first of which counts.
        images: number of all images.
        joined: number of images that a row names.
        classes: number of images of each class.
        patients: number of patients of the labelled images.
        without_patient: number of labelled images whose patient is not known.
        sites: number of labelled images of each site.
        overridden: number of images for which an earlier file counts, though a later one has a value as well.
        conflicts: number of these for which the values differ.
    """

    files: Sequence[FileReport]
    images: int = 0
    joined: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    patients: int = 0
    without_patient: int = 0
    sites: Counter[str] = field(default_factory=Counter)
    overridden: int = 0
    conflicts: int = 0

    @property
    def labelled(self) -> int:
        """Number of images with a label."""
        return self.classes.total()

    def log(self) -> None:
        """Log counts, and each doubt in one line."""
        event(
            "labels joined",
            images=self.joined,
            images_without_label=self.images - self.labelled,
            patients=self.patients,
            sites=len(self.sites),
        )
        if len(self.files) > 1:
            log.info("labels: classes of the images: %s", format_classes(self.classes))
            warn_of_like_classes(self.classes)
        for file in self.files:
            file.log()
        if self.overridden:
            log.warning(
                "%d images have values in several label files, which differ for %d; the first file counts",
                self.overridden,
                self.conflicts,
            )

    def as_json(self) -> dict[str, Any]:
        """The counts, for ``--json``."""
        return {
            "images": self.images,
            "joined": self.joined,
            "labelled": self.labelled,
            "classes": dict(sorted(self.classes.items())),
            "patients": self.patients,
            "without_patient": self.without_patient,
            "sites": dict(sorted(self.sites.items())),
            "overridden": self.overridden,
            "conflicts": self.conflicts,
            "files": [file.as_json() for file in self.files],
        }


def format_lines(lines: Sequence[int]) -> str:
    """Numbers of lines, for a message: the first ones, and the number of the others."""
    shown = ", ".join(map(str, lines[:_MOST_LINES]))
    more = len(lines) - _MOST_LINES
    return ("line " if len(lines) == 1 else "lines ") + shown + (f" and {more} more" if more > 0 else "")
