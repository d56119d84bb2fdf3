"""Small archives of images, and ``pack`` without Ray: its tasks run in the process of the test."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.manifest import read_manifest
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.execution.read import read_shard
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from medfocus.pipeline.ingest.catalog import Catalog
from medfocus.pipeline.ingest.items import Naming, SurveyRow
from medfocus.pipeline.ingest.portion import Packer
from medfocus.pipeline.ingest.source import LeftOut, walk_source
from medfocus.pipeline.ingest.stream import PackTotals, portions_of
from medfocus.pipeline.ingest.survey import Surveyor
from tests.conftest import png
from tests.pipeline.ingest import archives

PSEUDONYMS = Pseudonyms(b"k" * 32)
BY_PATH, BY_PSEUDONYM = Naming(PSEUDONYMS, keep=True), Naming(PSEUDONYMS, keep=False)

# Settings of calls that pack few files.
PACK_SETTINGS = ["pack.rows_per_shard=4", "burned_in.ocr=never"]


def pixels(seed: int, side: int = 16) -> np.ndarray:
    """A grey picture, uint8 [side, side], like that of no other seed."""
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


def picture(seed: int = 0, kind: str = "PNG", side: int = 16, **options: Any) -> bytes:
    """The bytes of a picture."""
    content = io.BytesIO()
    Image.fromarray(pixels(seed, side)).save(content, kind, **options)
    return content.getvalue()


def ct(samples: np.ndarray, patient: str = "P1", **attributes: Any) -> bytes:
    """A CT of 12 bits, in explicit VR.

    Args:
        samples: uint16 [H, W], or [N, H, W] for several frames.
        patient: PatientID.
        attributes: other attributes by keyword.
    """
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CTImageStorage, generate_uid(), "CT"
    dataset.PatientID, dataset.PatientName = patient, "Planted^Name"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.StudyDate, dataset.PatientAge, dataset.BodyPartExamined = "20200102", "047Y", "CHEST"
    dataset.Rows, dataset.Columns = samples.shape[-2:]
    if samples.ndim == 3:
        dataset.NumberOfFrames = len(samples)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.PixelSpacing = 2048, 4096, [0.5, 0.5]
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = samples.astype(np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def ct_samples(seed: int, *shape: int) -> np.ndarray:
    """Samples of 12 bits, uint16 of a shape, like those of no other seed."""
    return np.random.default_rng(seed).integers(0, 4096, shape or (16, 16), np.uint16)


def volume(seed: int, slices: int) -> bytes:
    """A NIfTI volume of so many slices."""
    samples = np.random.default_rng(seed).integers(0, 256, (12, 10, slices)).astype(np.int16)
    return bytes(nibabel.Nifti1Image(samples, np.diag([1.0, 1.0, 3.0, 1.0])).to_bytes())


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip of members by name."""
    return archives.zipped(members.items())


def tar_gz(members: Mapping[str, bytes]) -> bytes:
    """A tar.gz of members by name."""
    return archives.tar_gz(members.items())


def write(path: Path, content: bytes | None = None) -> Path:
    """Write a file, by default a picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels(0)) if content is None else content)
    return path


def write_each(top: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by their path below a folder."""
    for name, content in contents.items():
        write(top / name, content)


def write_raw(top: Path, name: bytes, content: bytes) -> None:
    """Write a file whose name is bytes."""
    with open(str(top).encode() + b"/" + name, "wb") as file:  # noqa: PTH123  a Path takes no bytes
        file.write(content)


def place(path: Path | str) -> Location:
    """The location of a path or URI."""
    return locate(str(path), StorageSection())


def find(
    catalog: Catalog, origin: Location, naming: Naming = BY_PATH, *, originals: bool = False, retry: bool = False
) -> LeftOut:
    """Walk a source and survey what is not packed, or with ``retry`` could not be; returns what the walk left out."""
    left_out = LeftOut()
    catalog.list_files(walk_source(origin, left_out), naming)
    catalog.adopt_packed(retry_quarantined=retry)
    survey_here(catalog, Surveyor(origin, naming.pseudonyms, originals))
    catalog.name_items(naming)
    return left_out


def survey_here(catalog: Catalog, surveyor: Surveyor) -> None:
    """What ``survey`` does, in this process."""
    if files := list(catalog.files_to_survey()):
        (result,) = surveyor(pa.Table.from_pylist(files)).to_pylist()
        catalog.add_survey(result["numbers"], (SurveyRow(**row) for row in result["rows"]), result["audit"])


def pack_here(catalog: Catalog, packer: Packer, cpus: int, counter: Any) -> PackTotals:
    """What ``pack_portions`` does, in this process."""
    totals = PackTotals()
    for portion in portions_of(catalog, packer.section.rows_per_shard, packer.section.bytes_per_shard):
        done = packer.pack(portion)
        totals.rows, totals.refused = totals.rows + done["rows"], totals.refused + done["refused"]
    return totals


def images(catalog: Catalog) -> list[str]:
    """Paths of the items that may be packed, sorted."""
    return sorted(path for (path,) in catalog.query("SELECT path FROM items WHERE outcome IS NULL"))


def errors(catalog: Catalog, naming: Naming = BY_PATH) -> dict[str, str]:
    """The class of the error of each item that cannot be packed, by its name."""
    return {item: error for item, _, error, _ in catalog.refusals(naming)}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of the Parquet files of a folder, whether they count or not."""
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def counted(shards: Path, version: int | None = None) -> dict[str, dict[str, Any]]:
    """The rows that a reader of a manifest version sees, by ``image_id``; one that is there twice is an error."""
    manifest = read_manifest(place(shards), version)
    rows = [row for shard in manifest.shards for row in read_shard(shard, place(shards)).to_pylist()]
    by_id = {row["image_id"]: row for row in rows}
    assert len(by_id) == len(rows) == manifest.rows
    assert sum(row["label"] is not None for row in rows) == sum(shard.most_labelled for shard in manifest.shards)
    return by_id


def decoded(rows: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The pixels of rows as Pillow reads them, by ``image_id``."""
    return {row["image_id"]: np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows}
