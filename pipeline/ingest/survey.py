"""The survey: what each file of a source is, by its first bytes, and of DICOM by its header.

It comes before any pixel is decoded. So labels that match nothing are told at once, and the patients of all images are
known when they are divided into splits.
"""

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pyarrow as pa
import ray

from medfocus.pipeline.data.storage import AccessError, Location, ServiceError, StorageError
from medfocus.pipeline.identity.audit import Audit
from medfocus.pipeline.identity.describe import Identity, describe
from medfocus.pipeline.identity.mapping import Original, original_of
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from medfocus.pipeline.ingest import containers
from medfocus.pipeline.ingest.catalog import Catalog, groups
from medfocus.pipeline.ingest.items import ARCHIVE, DICOM, NIFTI, NOT_AN_IMAGE, UNKNOWN, SurveyRow
from medfocus.pipeline.ingest.source import EMPTY, has_image_suffix, is_junk, read_with_retries, refusal_of
from medfocus.stages import dicom
from medfocus.stages.decode import media_type_of
from medfocus.stages.formats import nifti
from medfocus.stages.formats.picture import ImageError

# Bytes that are read of each file at first. The headers of most DICOM files are shorter.
_FIRST_BYTES = 1 << 16
# Bytes that tell whether a file is an image.
_SNIFFED = 4096
_LONG_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Files in one task, and tasks in one execution of Ray Data.
_FILES, _TASKS = 256, 256
# Reads of small objects wait for the network, not for a processor.
_READERS = 16


@dataclass(frozen=True)
class Surveyor:
    """Surveys files; it travels to workers.

    Args:
        origin: the source.
        pseudonyms: the pseudonyms of the archive.
        with_originals: whether rows have the ids of their headers, for a mapping.
    """

    origin: Location
    pseudonyms: Pseudonyms
    with_originals: bool = False

    def __call__(self, files: pa.Table) -> pa.Table:
        """Survey some files.

        Args:
            files: ``number``, ``name`` and ``size`` of each.

        Returns:
            One row: ``numbers`` of the files, the survey ``rows`` as columns, and the ``audit`` as JSON.

        Raises:
            AccessError: storage refuses the credentials.
            ServiceError: storage does not answer.
        """
        audit = Audit()
        with ThreadPoolExecutor(_READERS) as readers:
            results = list(readers.map(lambda file: list(self._survey(file, audit)), files.to_pylist()))
        rows = [vars(row) for result in results for row in result]
        return pa.table(
            {
                "numbers": pa.array([files["number"].to_pylist()], pa.list_(pa.int64())),
                "rows": pa.array([rows], pa.list_(_ROW)),
                "audit": [audit.to_json()],
            }
        )

    def _survey(self, file: dict[str, Any], audit: Audit) -> Iterator[SurveyRow]:
        """The rows of one file."""
        number, name, size = file["number"], file["name"].decode("utf-8", "surrogateescape"), file["size"]
        location = self.origin / name
        if not size:
            refusal = EMPTY if has_image_suffix(name) else (NOT_AN_IMAGE, None)
            yield SurveyRow(number, "", 0, size, UNKNOWN, *refusal)
            return
        try:
            first = read_with_retries(location, _FIRST_BYTES)
            if _is_document(first):
                yield SurveyRow(number, "", 0, size, UNKNOWN, NOT_AN_IMAGE)
            elif containers.container_kind(first[: containers.FIRST_BYTES]) and not nifti.is_nifti(first):
                yield SurveyRow(number, "", 0, size, UNKNOWN, ARCHIVE)
                yield from self._members(number, location, audit)
            elif dicom.is_dicom(first):
                header = _header(first, size, lambda: read_with_retries(location))
                yield self._dicom(SurveyRow(number, "", 0, size, DICOM), header, audit)
            else:
                yield self._picture(SurveyRow(number, "", 0, size, UNKNOWN), name, first)
        except (AccessError, ServiceError):
            raise
        except StorageError as error:
            yield SurveyRow(number, "", 0, size, UNKNOWN, *refusal_of(error, location))
        except ImageError as error:
            yield SurveyRow(number, "", 0, size, DICOM, error.kind, str(error))

    def _members(self, number: int, location: Location, audit: Audit) -> Iterator[SurveyRow]:
        """The rows of the members of an archive."""
        with location.open() as stream:
            for place, (name, content) in enumerate(containers.open_members(stream)):
                if any(map(is_junk, name.split("/"))):
                    continue
                if not isinstance(content, bytes):
                    yield SurveyRow(number, name, place, 0, UNKNOWN, content.error, content.message)
                    continue
                row = SurveyRow(number, name, place, len(content), UNKNOWN)
                if not dicom.is_dicom(content[:_SNIFFED]):
                    yield self._picture(row, name, content)
                    continue
                try:
                    yield self._dicom(replace(row, kind=DICOM), dicom.read_header(io.BytesIO(content)), audit)
                except ImageError as error:
                    yield replace(row, kind=DICOM, outcome=error.kind, message=str(error))

    def _dicom(self, row: SurveyRow, header: Any, audit: Audit) -> SurveyRow:
        """The row of a DICOM object."""
        audit.add(header)
        if kind := dicom.not_an_image(header):
            return replace(row, outcome=NOT_AN_IMAGE, message=f"DICOM {kind}")
        identity = describe(header, self.pseudonyms)
        original = json.dumps(asdict(original_of("", "", header))) if self.with_originals else None
        return replace(row, **_ids(identity), original=original)

    def _picture(self, row: SurveyRow, name: str, first: bytes) -> SurveyRow:
        """The row of a file that is not DICOM."""
        if nifti.is_nifti(first):
            return replace(row, kind=NIFTI)
        media_type = media_type_of(first)
        if media_type or first.startswith(_LONG_HEADERS):
            return replace(row, kind=media_type or UNKNOWN)
        return row if has_image_suffix(name) else replace(row, outcome=NOT_AN_IMAGE)


def survey(catalog: Catalog, surveyor: Surveyor) -> None:
    """Survey the files of a catalog that are new, by Ray Data.

    Args:
        catalog: takes the rows.
        surveyor: surveys some files in a task.
    """
    for files in groups(catalog.files_to_survey(), _FILES * _TASKS):
        blocks = [pa.Table.from_pylist(group) for group in groups(files, _FILES)]
        dataset = ray.data.from_arrow(blocks).map_batches(surveyor, batch_format="pyarrow", batch_size=None)
        for result in dataset.iter_rows():
            catalog.add_survey(result["numbers"], (SurveyRow(**row) for row in result["rows"]), result["audit"])


def audit_of(catalog: Catalog) -> Audit:
    """The audit of all headers of a catalog."""
    audit = Audit()
    for (text,) in catalog.query("SELECT counts FROM audits"):
        audit.merge(Audit.from_json(text))
    return audit


def originals_of(catalog: Catalog) -> Iterator[Original]:
    """The path of each item, and the ids of its header where the survey has kept them, for a mapping."""
    for item, path, original in catalog.query("SELECT item, path, original FROM items WHERE outcome IS NULL"):
        yield Original(**json.loads(original or "{}") | {"image_id": item, "path": path})


def _is_document(first: bytes) -> bool:
    """Whether a zip is an office document, by its first member."""
    return first.startswith(b"PK\x03\x04") and first[30:].startswith((b"[Content_Types].xml", b"mimetype", b"_rels/"))


def _header(first: bytes, size: int, whole: Callable[[], bytes]) -> Any:
    """The header of a DICOM file, from its first bytes where these suffice."""
    try:
        return dicom.read_header(io.BytesIO(first))
    except ImageError:
        if size <= len(first):
            raise
        return dicom.read_header(io.BytesIO(whole()))


def _ids(identity: Identity) -> dict[str, Any]:
    """The fields of a survey row that come from a header."""
    return {
        "patient": identity.patient_id,
        "study": identity.study_id,
        "series": identity.series_id,
        "instance": identity.instance_id,
        "accession": identity.accession,
        "site": identity.site,
        "study_date": identity.study_date,
    }


_ROW = pa.struct([(field.name, pa.int64() if "int" in str(field.type) else pa.string()) for field in fields(SurveyRow)])
