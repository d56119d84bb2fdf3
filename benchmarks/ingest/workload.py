"""Files of each format for the benchmark of ``pack``, no two with the same pixels."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    generate_uid,
)
from scipy.ndimage import gaussian_filter

from medfocus.stages.formats.encode import encode_png

SIDE = 1024
_BITS = 12


def draw(number: int, side: int) -> np.ndarray:
    """A picture with smooth structures and noise, as a radiograph has them: uint16 [side, side] of 12 bits."""
    random = np.random.default_rng(number)
    coarse = gaussian_filter(random.normal(size=(side // 8, side // 8)), 4)
    smooth = np.kron(coarse / np.abs(coarse).max(), np.ones((8, 8)))
    samples = 2048 + 1500 * gaussian_filter(smooth, 4) + random.normal(scale=8, size=(side, side))
    return np.clip(samples, 0, 2**_BITS - 1).astype(np.uint16)


def dicom(number: int, syntax: str | None = None, side: int | None = None) -> bytes:
    """A radiograph of a patient of its own, with a window; uncompressed, or of a transfer syntax."""
    side = side or SIDE
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPClassUID = DigitalXRayImageStorageForPresentation
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.PatientID, header.PatientName, header.Modality = f"P{number}", f"Benchmark^{number}", "DX"
    header.StudyDate, header.PatientAge, header.PatientSex = "20240131", "052Y", "F"
    header.BurnedInAnnotation = "NO"
    header.Rows = header.Columns = side
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, _BITS, _BITS - 1, 0
    header.WindowCenter, header.WindowWidth = 2048, 3000
    header.PixelData = draw(number, side).tobytes()
    if syntax is not None:
        header.compress(syntax)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, header, enforce_file_format=True)
    return stream.getvalue()


def png(number: int) -> bytes:
    """A picture of 8 bits as PNG."""
    return encode_png((draw(number, SIDE) >> 4).astype(np.uint8))


FORMATS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "PNG, 8 bit": ("png", png),
    "DICOM, uncompressed": ("dcm", dicom),
    "DICOM, JPEG-LS": ("dcm", lambda number: dicom(number, JPEGLSLossless)),
    "DICOM, JPEG 2000": ("dcm", lambda number: dicom(number, JPEG2000Lossless)),
}


def write_files(folder: Path, name: str, count: int) -> list[Path]:
    """Write files of a format of ``FORMATS``."""
    suffix, make = FORMATS[name]
    folder.mkdir(parents=True)
    paths = [folder / f"{number:06d}.{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(make(number))
    return paths
