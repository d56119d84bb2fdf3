"""DICOM objects for tests, made with pydicom."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from medfocus.stages import dicom

CT = "1.2.840.10008.5.1.4.1.1.2"
WHOLE = dicom.Display(max_pixels=1_000_000)
DEEP = dicom.Display(max_pixels=1_000_000, bits=16)


def item(**attributes: Any) -> Dataset:
    """An item of a sequence."""
    found = Dataset()
    for keyword, value in attributes.items():
        setattr(found, keyword, value)
    return found


def image(pixels: np.ndarray, *, syntax: UID = ExplicitVRLittleEndian, data: bytes | None = None, **attributes: Any):
    """A data set with pixels [H, W], [H, W, 3] or [frames, H, W], and further attributes; None removes one.

    Args:
        pixels: unsigned or signed integers of 8, 16 or 32 bits.
        syntax: transfer syntax.
        data: value of Pixel Data; None takes the pixels without compression.
        attributes: by keyword, such as ``WindowCenter=40``.
    """
    coloured = pixels.ndim == 3 and pixels.shape[2] == 3
    bits = 8 * pixels.itemsize
    header = FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CT
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.Modality = "CT"
    header.Rows, header.Columns = pixels.shape[:2] if pixels.ndim == 2 or coloured else pixels.shape[1:]
    header.SamplesPerPixel = 3 if coloured else 1
    header.PhotometricInterpretation = "RGB" if coloured else "MONOCHROME2"
    if coloured:
        header.PlanarConfiguration = 0
    if pixels.ndim == 3 and not coloured:
        header.NumberOfFrames = len(pixels)
    header.BitsAllocated = header.BitsStored = bits
    header.HighBit = bits - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    header.PixelData = data if data is not None else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    header["PixelData"].VR = "OB" if bits == 8 or data is not None else "OW"
    if attributes.get("BitsStored"):
        attributes.setdefault("HighBit", attributes["BitsStored"] - 1)
    for keyword, value in attributes.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    return header


def written(header: FileDataset) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    dcmwrite(buffer, header, enforce_file_format=True)
    return buffer.getvalue()


def frames_of(content: bytes, display: dicom.Display = WHOLE, choice: dicom.FrameChoice | None = None):
    """The frames of a file."""
    return list(dicom.read_frames(content, choice or dicom.FrameChoice(), display))


def shown(pixels: np.ndarray, **attributes: Any) -> np.ndarray:
    """The picture of the first frame of an image."""
    return frames_of(written(image(pixels, **attributes)))[0].pixels


def ramp(low: int, high: int, kind: str = "u2") -> np.ndarray:
    """All whole numbers of a range, [rows, 64], the last repeated."""
    values = np.arange(low, high)
    return np.resize(values, (-(-len(values) // 64), 64)).astype(kind)


def lut(first: int, entries: Sequence[int], bits: int) -> Dataset:
    """An item of a Modality LUT or VOI LUT Sequence."""
    found = item(LUTData=np.array(entries, "<u2").tobytes())
    found.add_new(0x00283002, "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    found["LUTData"].VR = "OW"
    return found
