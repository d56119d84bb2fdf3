"""What a viewer shows of a DICOM file, by other means than the project's.

GDCM decodes the file (imagecodecs what GDCM does not), pydicom's functions or the formulas of PS3.3 make the picture.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import gdcm
import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, convert_color_space, pixel_array
from pydicom.uid import JPEGExtended12Bit, RLELossless

# The type of a sample by its name in GDCM.
_TYPES = {
    "UINT8": "u1",
    "INT8": "i1",
    "UINT12": "u2",
    "UINT16": "u2",
    "INT16": "i2",
    "UINT32": "u4",
    "INT32": "i4",
    "SINGLEBIT": "u1",
    "FLOAT32": "f4",
    "FLOAT64": "f8",
}


@dataclass(frozen=True)
class Stored:
    """Stored samples [frames, H, W, C], their photometric interpretation, and what has decoded them."""

    frames: np.ndarray
    photometric: str
    decoder: str


def header_of(path: Path) -> pydicom.Dataset:
    """The attributes before the pixel data."""
    return pydicom.dcmread(path, force=True, stop_before_pixels=True)


def stored_of(path: Path) -> Stored:
    """The stored samples of a file."""
    header = header_of(path)
    syntax = header.file_meta.get("TransferSyntaxUID", "")
    found = None if syntax == RLELossless else _by_gdcm(path)
    if found is None and syntax == JPEGExtended12Bit:
        found = _by_imagecodecs(path)
    if found is None:  # its own decoder of RLE and of samples without compression
        array = pixel_array(path, raw=True, decoding_plugin="pydicom" if syntax == RLELossless else "")
        samples, frames = header.get("SamplesPerPixel", 1), int(header.get("NumberOfFrames") or 1)
        array = array.reshape(frames, header.Rows, header.Columns, samples)
        found = Stored(array, header.PhotometricInterpretation, "pydicom")
    frames, bits = found.frames, header.get("BitsStored", 0)
    if frames.dtype.kind in "iu" and 0 < bits < 8 * frames.itemsize:
        frames = frames.astype(np.int64) & (2**bits - 1)
        if header.PixelRepresentation == 1:
            frames = np.where(frames >= 2 ** (bits - 1), frames - 2**bits, frames)
    return Stored(frames, found.photometric, found.decoder)


def _by_gdcm(path: Path) -> Stored | None:
    """What GDCM reads; None where it does not read the file."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        return None
    image = reader.GetImage()
    kind = image.GetPixelFormat()
    name, samples = kind.GetScalarTypeAsString(), kind.GetSamplesPerPixel()
    columns, rows, *rest = image.GetDimensions()
    shape = (rest[0] if rest else 1, rows, columns, samples)
    try:
        data = image.GetBuffer().encode("utf-8", "surrogateescape")
    except Exception:
        return None
    bits = np.frombuffer(data, np.uint8)
    values = np.unpackbits(bits, bitorder="little") if name == "SINGLEBIT" else np.frombuffer(data, _TYPES[name])
    if len(values) < np.prod(shape):
        return None
    values = values[: int(np.prod(shape))]
    if samples == 3 and image.GetPlanarConfiguration() == 1:
        values = np.moveaxis(values.reshape(shape[0], 3, rows, columns), 1, 3)
    return Stored(values.reshape(shape), str(image.GetPhotometricInterpretation()).strip(), "GDCM")


def _by_imagecodecs(path: Path) -> Stored:
    """The frames of JPEG of 12 bits."""
    header = pydicom.dcmread(path)
    frames = generate_frames(header.PixelData, number_of_frames=int(header.get("NumberOfFrames") or 1))
    decoded = [imagecodecs.jpeg8_decode(frame).reshape(header.Rows, header.Columns, -1) for frame in frames]
    return Stored(np.stack(decoded), header.PhotometricInterpretation, "imagecodecs")


def with_groups(header: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """A header with the window and the rescale of a frame's functional groups in their classic places."""
    flat = copy.copy(header)
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for place, groups in enumerate(header.get(keyword) or []):
            if keyword.startswith("Shared") or place == frame:
                for macro in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
                    for item in groups.get(macro) or []:
                        flat.update(item)
    return flat


def shown(stored: np.ndarray, photometric: str, header: pydicom.Dataset) -> np.ndarray:
    """The picture of a frame [H, W, C]: uint8 [H, W] or [H, W, 3]."""
    if photometric.startswith("YBR_FULL"):
        return convert_color_space(stored.astype(np.uint8), "YBR_FULL", "RGB")
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(stored[..., 0], header)
        return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
    if stored.shape[2] == 3:
        return np.round(stored / float(2**header.BitsStored - 1) * 255).astype(np.uint8)
    values = stored[..., 0]
    units = apply_modality_lut(values, header).astype(np.float64)
    brightness = _brightness(values, units, header)
    shape = header.get("PresentationLUTShape") or ("INVERSE" if photometric == "MONOCHROME1" else "IDENTITY")
    brightness = 1 - brightness if shape == "INVERSE" else brightness
    picture = np.round(brightness * 255).astype(np.uint8)
    padding = _padding(values, header)
    picture[padding] = 0
    return picture


def _brightness(values: np.ndarray, units: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Brightness in 0..1 of values in units of the modality."""
    if header.get("VOILUTSequence"):
        table = header.VOILUTSequence[0]
        count, first, bits = table.LUTDescriptor
        data = np.frombuffer(table.LUTData, "<u2") if isinstance(table.LUTData, bytes) else np.array(table.LUTData)
        return data[np.clip(units - first, 0, (count or 65536) - 1).astype(int)] / (2**bits - 1)
    if header.get("WindowWidth") not in (None, "") and header.get("WindowCenter") not in (None, ""):
        centre, width = (np.atleast_1d(header[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        centre, width = float(centre), float(width)
        if header.get("VOILUTFunction") == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (units - centre) / width))
        if width > 1 and header.get("VOILUTFunction") != "LINEAR_EXACT" and values.dtype.kind != "f":
            return np.clip((units - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
        if width > 0:
            return np.clip((units - centre) / width + 0.5, 0, 1)
    if header.get("BitsStored", 64) <= 8:
        return (units - units.min()) * 0 + values / (2**header.BitsStored - 1)
    seen = units[~_padding(values, header)]
    low, high = np.percentile(seen, (0.5, 99.5))
    return np.clip((units - low) / (high - low), 0, 1) if high > low else (units > low).astype(float)


def _padding(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Which stored values are padding."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(values.shape, bool)
    limit = header.get("PixelPaddingRangeLimit")
    ends = sorted([value, value if limit is None else limit])
    return (values >= ends[0]) & (values <= ends[1])


def resampled(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture in another size, bilinear."""
    if picture.shape[:2] == shape[:2]:
        return picture
    return np.asarray(Image.fromarray(picture).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
