"""How the pixels of a DICOM image are stored (PS3.3 C.7.6.3)."""

import math
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medfocus.stages.dicom.attributes import text_of, whole_number_of
from medfocus.stages.dicom.header import PixelElement
from medfocus.stages.formats.picture import ImageError, check_size

DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")  # Deflated Image Frame Compression, PS3.5 A.4.12
_ALLOCATED = {"PixelData": (1, 8, 12, 16, 32, 64), "FloatPixelData": (32,), "DoubleFloatPixelData": (64,)}
_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_PARTIAL_420": 3,
    "YBR_PARTIAL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}


@dataclass(frozen=True)
class Layout:
    """What the header says of the stored pixels.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        frames: number of frames.
        samples: samples of a pixel.
        allocated: bits that a sample occupies.
        stored: bits of a sample that are used.
        high: the most significant of them, from 0.
        signed: whether samples are in two's complement.
        floating: whether samples are floating-point numbers.
        planar: whether a frame holds whole planes of one colour.
        photometric: photometric interpretation.
        transfer_syntax: UID of the encoding.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    floating: bool
    planar: bool
    photometric: str
    transfer_syntax: UID

    @property
    def frame_bits(self) -> int:
        """Bits of a frame without compression."""
        samples = self.rows * self.columns * self.samples
        if self.photometric == "YBR_FULL_422" and not self.transfer_syntax.is_compressed:
            samples = samples // 3 * 2
        return samples * self.allocated

    @property
    def is_packed(self) -> bool:
        """Whether two samples share three bytes, as ACR-NEMA allows."""
        return self.allocated == 12

    def bytes_of(self, frames: int) -> int:
        """Bytes of some frames without compression."""
        return math.ceil(self.frame_bits * frames / 8)


def layout_of(header: Dataset, element: PixelElement, max_pixels: int) -> Layout:
    """Read how the pixels are stored, and check it.

    Missing attributes are replaced as viewers do: one sample, one frame, unsigned, all bits used, MONOCHROME2 or RGB.

    Args:
        header: the attributes.
        element: the element that holds the pixels.
        max_pixels: most pixels of a frame.

    Raises:
        ImageError: Undecodable, Unsupported or TooManyPixels.
    """
    rows, columns = whole_number_of(header, "Rows"), whole_number_of(header, "Columns")
    if rows is None or columns is None:
        raise ImageError("Undecodable", "the header names no rows or no columns")
    check_size(columns, rows, max_pixels)
    allocated = whole_number_of(header, "BitsAllocated")
    if element.keyword != "PixelData" and allocated is None:
        allocated = _ALLOCATED[element.keyword][0]
    if allocated is None:
        raise ImageError("Undecodable", "the header does not say how many bits are allocated for a sample")
    if allocated not in _ALLOCATED[element.keyword]:
        raise ImageError("Unsupported", f"{element.keyword} with {allocated} bits for a sample is not read")
    stored = _number(header, "BitsStored", allocated)
    high = _number(header, "HighBit", stored - 1)
    if not 0 < stored <= allocated:
        raise ImageError("Undecodable", f"the header stores {stored} bits of a sample in {allocated} bits")
    if not stored - 1 <= high < allocated:
        high = stored - 1
    frames = _number(header, "NumberOfFrames", 1)
    if frames < 0:
        raise ImageError("Undecodable", f"the header names {frames} frames")
    samples = _number(header, "SamplesPerPixel", 1)
    photometric = text_of(header, "PhotometricInterpretation") or ("RGB" if samples == 3 else "MONOCHROME2")
    if photometric not in _SAMPLES:
        raise ImageError("Unsupported", "the photometric interpretation is none that is read")
    if _SAMPLES[photometric] != samples:
        raise ImageError("Undecodable", f"the header names {samples} samples a pixel for {photometric}")
    return Layout(
        rows=rows,
        columns=columns,
        frames=frames or 1,
        samples=samples,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=_number(header, "PixelRepresentation", 0) == 1,
        floating=element.keyword != "PixelData",
        planar=samples > 1 and _number(header, "PlanarConfiguration", 0) == 1,
        photometric=photometric,
        transfer_syntax=_transfer_syntax(header),
    )


def _number(header: Dataset, keyword: str, missing: int) -> int:
    """A whole number, with a value where it is missing."""
    value = whole_number_of(header, keyword)
    return missing if value is None else value


def _transfer_syntax(header: Dataset) -> UID:
    """The transfer syntax; where it is missing, the one that the attributes are encoded in."""
    named = text_of(header.file_meta, "TransferSyntaxUID")
    if named:
        syntax = UID(named)
        if syntax != DEFLATED_FRAMES and (syntax.is_private or not syntax.is_transfer_syntax):
            what = named if set(named) <= set("0123456789.") else "no UID"
            raise ImageError("Unsupported", f"the transfer syntax is none that is read ({what})")
        return syntax
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian
