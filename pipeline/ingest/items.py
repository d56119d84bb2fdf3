"""Items: what a source holds, and how each is named in shards, indexes and quarantine."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from medfocus.pipeline.data.local_tree import encoded
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from medfocus.pipeline.ingest.source import identifier

# Kinds of items beside the media types of pictures.
DICOM, NIFTI, UNKNOWN = "application/dicom", "application/x-nifti", "unknown"
# Outcomes of items that are not refused. Those of refused ones are classes of errors.
NOT_AN_IMAGE, ARCHIVE, UNCHANGED = "not an image", "archive", "unchanged"


@dataclass(frozen=True)
class SurveyRow:
    """What the survey found in a file or in a member of an archive.

    Args:
        file: number of the file in the catalog.
        member: name of the member in its archive; empty for the file itself.
        place: place of the member in its archive.
        size: size in bytes.
        kind: media type of a picture, ``DICOM``, ``NIFTI`` or ``UNKNOWN``.
        outcome: class of the error where the item cannot be packed; ``NOT_AN_IMAGE``, ``ARCHIVE``; None otherwise.
        message: what is wrong, or the kind of what is no image.
        patient: pseudonym of the patient; None where it is not known, as the others.
        study: pseudonym of the study.
        series: pseudonym of the series.
        instance: pseudonym of the instance.
        accession: pseudonym of the accession number.
        site: pseudonym of the site.
        study_date: day of the study, counted from 1900-01-01.
        original: the ids of the header as JSON, where a mapping is asked for.
    """

    file: int
    member: str
    place: int
    size: int
    kind: str
    outcome: str | None = None
    message: str | None = None
    patient: str | None = None
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    accession: str | None = None
    site: str | None = None
    study_date: int | None = None
    original: str | None = None


@dataclass(frozen=True)
class Item:
    """An item to pack, as it travels to a worker.

    Args:
        item: name of the item in shards and indexes.
        file: path of the file below the source, with lone surrogates for bytes that are not UTF-8.
        member: name of the member in its archive; empty for the file itself.
        kind: as in ``SurveyRow``.
        size: size in bytes.
        stamp: pseudonym of the stamp of its file.
        revision: number of earlier contents of the same path that are packed.
        label: class; None where it is not known, as the others.
        patient: pseudonym of the patient.
        site: where the image was taken.
        split: split of the patient.
        first_day: day of the patient's first study, counted from 1900-01-01.
        digests: digests of the pictures of the content that is packed, where there is an earlier one.
        container: name of its archive, as an item has one; None where it is a file by itself.
        ids: what the survey found beside the patient and the site: study, series, instance, accession, and the
            day of the study.
    """

    item: str
    file: str
    member: str
    kind: str
    size: int
    stamp: str
    revision: int = 0
    label: str | None = None
    patient: str | None = None
    site: str | None = None
    split: str | None = None
    first_day: int | None = None
    digests: tuple[str, ...] = ()
    container: str | None = None
    ids: tuple[str | int | None, ...] = ()

    def image_id(self, frame: int | None) -> str:
        """The ``image_id`` of a frame of the item; None for an item of one frame."""
        revision = f"~{self.revision}" if self.revision else ""
        return f"{self.item}{revision}" if frame is None else f"{self.item}{revision}-{frame}"


def item_of(image_id: str) -> str:
    """The item of an image, where items are named by pseudonyms, from what ``Item.image_id`` writes."""
    return re.split("[~-]", image_id)[0]


def revision_of(item: str, image_id: str | None) -> int:
    """The revision in an ``image_id`` of an item, as ``Item.image_id`` writes it; 0 where there is none."""
    match = re.match(r"~(\d+)", (image_id or "").removeprefix(item))
    return int(match[1]) if match else 0


@dataclass(frozen=True)
class Naming:
    """Names items: by pseudonyms, or by their paths where the configuration says so.

    Args:
        pseudonyms: the pseudonyms of the archive.
        keep: whether paths stay.
    """

    pseudonyms: Pseudonyms
    keep: bool

    @property
    def fingerprint(self) -> str:
        """A text that differs where items have other names: another key, or names that are kept."""
        return f"{self.pseudonyms.fingerprint}{'-names' if self.keep else ''}"

    def item(self, path: str) -> str:
        """The name of an item, from its path below the source in the normal form of ``source.identifier``."""
        return path if self.keep else self.pseudonyms.of("path", path)

    def stamp(self, stamp: str) -> str:
        """A pseudonym of the stamp of a file, which may hold a time."""
        return self.pseudonyms.of("stamp", stamp)

    def source_uri(self, item: str, uri: str) -> str:
        """What a row says of its source."""
        return uri if self.keep else f"medfocus:{item}"


def distinct_texts(files: Iterable[tuple[int, str]]) -> dict[int, str | None]:
    """Give files that have the same path as text distinct ones.

    Of paths that differ by their Unicode form only, the one in NFC keeps it, and others are in URL encoding.

    Args:
        files: number and path of files with the same ``source.identifier``.

    Returns:
        By number the text; None where there is no distinct one.
    """
    texts: dict[int, str | None] = {}
    for number, file in sorted(files, key=lambda entry: (identifier(entry[1]) != entry[1], entry[1])):
        candidates = [identifier(file), quote(encoded(file))]
        texts[number] = next((text for text in candidates if text not in texts.values()), None)
    return texts
