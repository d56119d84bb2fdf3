"""The private mapping from pseudonyms back to the originals: written if asked for, and always encrypted."""

import base64
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from pydicom import Dataset

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.attributes import text_of
from medfocus.pipeline.identity.private_file import private_file
from medfocus.pipeline.identity.pseudonyms import Pseudonyms

# Rows in one encrypted line.
_ROWS = 1000


@dataclass(frozen=True)
class Original:
    """The identity of one image, which must stay in the hospital.

    Attributes:
        image_id: of the shard row; the pseudonym that all others are found by.
        path: of the file, or of the archive and the member.
        patient_id: as in the header, like the others.
        issuer: of the patient id.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.
        instance_uid: SOP Instance UID.
        accession: accession number.
    """

    image_id: str
    path: str
    patient_id: str = ""
    issuer: str = ""
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""
    accession: str = ""


def original_of(image_id: str, path: str, header: Dataset | None = None) -> Original:
    """The identity of an image; ``header`` is that of a DICOM object."""
    if header is None:
        return Original(image_id, path)
    keywords = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return Original(image_id, path, *(text_of(header, name) or "" for name in (*keywords, "AccessionNumber")))


def write_mapping(path: str | Path, originals: Iterable[Original], pseudonyms: Pseudonyms) -> int:
    """Add originals to the mapping file.

    Each line is a Fernet token (AES-128 in CBC mode, HMAC-SHA256) of a JSON list of rows. Its key is derived from the
    key of the pseudonyms. The file has the permissions 0600.

    Args:
        path: a local file; rows that it holds stay.
        originals: the rows.
        pseudonyms: made with the secret key.

    Returns:
        The number of rows written.

    Raises:
        UsageError: the file cannot be written.
    """
    cipher, rows, count = _cipher(pseudonyms), [], 0
    with private_file(path, append=True) as stream:
        for original in originals:
            rows.append(list(asdict(original).values()))
            count += 1
            if len(rows) == _ROWS:
                stream.write(cipher.encrypt(json.dumps(rows).encode()) + b"\n")
                rows = []
        if rows:
            stream.write(cipher.encrypt(json.dumps(rows).encode()) + b"\n")
    return count


def read_mapping(path: str | Path, pseudonyms: Pseudonyms) -> Iterator[Original]:
    """Decrypt a mapping file.

    Args:
        path: file that ``write_mapping`` wrote.
        pseudonyms: made with the key that it was written with.

    Raises:
        UsageError: the file cannot be read, or the key is another one.
    """
    cipher, file = _cipher(pseudonyms), Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            for line in stream:
                yield from (Original(*row) for row in json.loads(cipher.decrypt(line.rstrip(b"\n"))))
    except InvalidToken as error:
        raise UsageError(f"{file}: was not written with this key, or is damaged; give the key of the pack") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}); correct the path") from error


def as_csv(originals: Iterable[Original]) -> str:
    """The originals as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in fields(Original))
    writer.writerows(asdict(original).values() for original in originals)
    return text.getvalue()


def _cipher(pseudonyms: Pseudonyms) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(pseudonyms.derived_key("mapping")))
