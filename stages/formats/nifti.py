"""The reader of NIfTI-1 and NIfTI-2 volumes in one file (``.nii``, ``.nii.gz``)."""

# nibabel has annotations only in part.
# mypy: disable-error-code="no-untyped-call"

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from medfocus.stages.formats.frames import Display, Frame, FrameChoice, square_pixels
from medfocus.stages.formats.levels import Levels
from medfocus.stages.formats.picture import ImageError, check_size

_GZIP = b"\x1f\x8b"
_HEADER = 540  # bytes of the larger header, that of NIfTI-2
_SIZE_1 = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # 348, the length of the header of NIfTI-1
_SIZE_2 = (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # 540
# Bytes between the header and the volume that are skipped at most.
_MOST_EXTENSIONS = 1 << 26
# Bytes of a sample with the most pixels allowed, as for images.
_BYTES_PER_PIXEL = 8
_FULL = 65535


@dataclass(frozen=True)
class _Volume:
    """One volume of a file.

    Attributes:
        samples: [X, Y, Z] or [X, Y, Z, 3] as stored; X rises to the patient's right, Y to the front, Z to the head.
        affine: [4, 4], from voxel indices to mm.
        rising: whether larger stored values are brighter.
        extent: the smallest and the largest finite stored value.
        shown: the 0.5th and the 99.5th percentile of the finite stored values.
    """

    samples: np.ndarray
    affine: np.ndarray
    rising: bool
    extent: tuple[float, float]
    shown: tuple[float, float]


def is_nifti(first: bytes) -> bool:
    """Whether the first bytes of a file, compressed by gzip or not, are those of a NIfTI volume in one file.

    Args:
        first: at least 348 bytes of the file; of a compressed one, 512.
    """
    if first.startswith(_GZIP):
        try:
            first = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(first, _HEADER)
        except zlib.error:
            return False
    one = first[:4] in _SIZE_1 and first[344:348] == b"n+1\0"
    return one or (first[:4] in _SIZE_2 and first[4:8] == b"n+2\0")


def read_slices(content: bytes, choice: FrameChoice, display: Display) -> Iterator[Frame]:
    """Decode axial slices of a NIfTI volume as radiologists see them: front up, the patient's left on the right.

    The axes are turned to the nearest of the patient's. The window is that from the 0.5th to the 99.5th percentile of
    the finite values of the volume. Of a file of several volumes each is read: the choice of slices holds within each,
    and slices are numbered on through the volumes.

    Args:
        content: the bytes of the file.
        choice: which slices of each volume, counted from the feet.
        display: how they are shown; its ``max_pixels`` bounds a volume too, at 8 bytes a pixel.

    Yields:
        The slices in their order. Positions are those of the first pixel, in mm towards the patient's left, back and
        head, as DICOM has them.

    Raises:
        ImageError: Undecodable, Truncated, Unsupported or TooManyPixels.
    """
    if not is_nifti(content[:4096]):
        raise ImageError("Undecodable", "the file is no NIfTI volume")
    plain: BinaryIO = io.BytesIO(content)
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if content.startswith(_GZIP) else plain
    try:
        yield from _slices(stream, choice, display)
    except EOFError as error:
        raise ImageError("Truncated", "the NIfTI file is truncated: its gzip data do not end") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ImageError("Undecodable", "the gzip data of the NIfTI file are damaged") from error


def _slices(stream: BinaryIO, choice: FrameChoice, display: Display) -> Iterator[Frame]:
    """The slices of an inflated file."""
    header, affine = _header_of(stream)
    shape, dtype = _shape_of(header, display.max_pixels)
    slope, _ = header.get_slope_inter()
    turns = io_orientation(affine)
    if np.isnan(turns).any():
        raise ImageError("Undecodable", "the NIfTI header gives two axes of the volume the same direction")
    turned = affine @ inv_ornt_aff(turns, shape[:3])
    for volume in range(shape[3]):
        samples = apply_orientation(_read_volume(stream, shape[:3], dtype), turns)
        check_size(samples.shape[0], samples.shape[1], display.max_pixels)
        found = _Volume(samples, turned, slope is None or slope >= 0, *_extent_of(samples))
        for place in choice.of(samples.shape[2]):
            yield _slice(found, place, volume * samples.shape[2] + place, display)


def _header_of(stream: BinaryIO) -> tuple[nibabel.Nifti1Header, np.ndarray]:
    """Read the header and skip to the volume; also the affine from voxel indices to mm."""
    start = stream.read(348)
    kind = nibabel.Nifti1Header if start[:4] in _SIZE_1 else nibabel.Nifti2Header
    start += stream.read(kind.sizeof_hdr - len(start))
    if len(start) < kind.sizeof_hdr:
        raise ImageError("Truncated", "the NIfTI file is truncated: it ends in its header")
    try:
        header = kind(start, check=False)
        affine = np.asarray(header.get_best_affine(), np.float64)
        offset = int(header["vox_offset"])
    except Exception as error:  # nibabel raises errors of several classes on damaged headers
        raise ImageError("Undecodable", f"the header of the NIfTI file is damaged ({type(error).__name__})") from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ImageError("Undecodable", "the NIfTI header places the voxels nowhere: its affine has no inverse")
    rest = offset - len(start)
    if not 0 <= rest <= _MOST_EXTENSIONS:
        raise ImageError("Undecodable", "the NIfTI header places its volume outside of the file")
    if len(stream.read(rest)) < rest:
        raise ImageError("Truncated", "the NIfTI file is truncated: it ends before its volume")
    return header, affine


def _shape_of(header: nibabel.Nifti1Header, max_pixels: int) -> tuple[tuple[int, int, int, int], np.dtype]:
    """Three sides and the number of volumes, and the type of a voxel; checked."""
    try:
        sides, dtype = tuple(int(side) for side in header.get_data_shape()), header.get_data_dtype()
    except Exception as error:
        raise ImageError("Undecodable", f"the header of the NIfTI file is damaged ({type(error).__name__})") from error
    if len(sides) < 2 or any(side != 1 for side in sides[4:]):
        raise ImageError("Unsupported", f"a NIfTI file of {len(sides)} dimensions is not read")
    sides = (*sides, 1, 1)[:4] if len(sides) < 4 else sides[:4]
    if dtype.kind not in "uifV" or dtype.itemsize > _BYTES_PER_PIXEL:
        raise ImageError("Unsupported", "a NIfTI file of complex or extended numbers is not read")
    if min(sides) <= 0:
        raise ImageError("Undecodable", "the NIfTI header names a side without voxels")
    if math.prod(sides[:3]) * dtype.itemsize > max_pixels * _BYTES_PER_PIXEL:
        limit = f"the limit is {max_pixels} of {_BYTES_PER_PIXEL} bytes"
        raise ImageError(
            "TooManyPixels", f"a volume of {math.prod(sides[:3])} voxels of {dtype.itemsize} bytes, {limit}"
        )
    return (sides[0], sides[1], sides[2], sides[3]), dtype


def _read_volume(stream: BinaryIO, sides: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Read the next volume, [X, Y, Z] or [X, Y, Z, 3]."""
    length = math.prod(sides) * dtype.itemsize
    data = stream.read(length)
    if len(data) < length:
        raise ImageError("Truncated", f"the NIfTI file is truncated: {len(data)} of {length} bytes of a volume")
    if dtype.kind == "V":  # red, green, blue, and opacity in some
        return np.moveaxis(np.frombuffer(data, np.uint8).reshape((dtype.itemsize, *sides), order="F")[:3], 0, 3)
    return np.frombuffer(data, dtype).reshape(sides, order="F")


def _extent_of(samples: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """The smallest and the largest finite value of a volume, and the 0.5th and the 99.5th percentile."""
    values = samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples
    if not values.size:
        raise ImageError("NotFinite", "the volume holds no value that is a finite number")
    low, high = (float(end) for end in np.percentile(values, (0.5, 99.5)))
    return (float(values.min()), float(values.max())), (low, high)


def _slice(volume: _Volume, place: int, number: int, display: Display) -> Frame:
    """The slice at a place of a volume."""
    seen = np.swapaxes(volume.samples[::-1, ::-1, place], 0, 1)
    window = None
    if seen.ndim == 3:
        pixels = np.ascontiguousarray(seen)
    else:
        levels = _levels(volume, seen)
        pixels = levels.bytes() if display.bits == 8 else levels.words()
        window = levels.window if display.bits == 16 else None
    columns, rows = (float(side) for side in np.linalg.norm(volume.affine[:3, :2], axis=0))
    pixels, growth = square_pixels(pixels, (rows, columns), display.max_pixels)
    wide, tall = volume.samples.shape[:2]
    right, front, head = (float(mm) for mm in volume.affine[:3] @ (wide - 1, tall - 1, place, 1))
    return Frame(number, pixels, (rows / growth[0], columns / growth[1]), (-right, -front, head), window)


def _levels(volume: _Volume, seen: np.ndarray) -> Levels:
    """Steps of brightness of a slice: stored values from the least of the volume, or its range in 65536 steps."""
    (least, most), ends = volume.extent, volume.shown
    step = 1.0 if seen.dtype.kind in "ui" and most - least <= _FULL else (most - least) / _FULL or 1.0
    values = seen.astype(np.float64)
    if volume.rising:
        steps, (low, high) = (values - least) / step, ((end - least) / step for end in ends)
    else:
        steps, (high, low) = (most - values) / step, ((most - end) / step for end in ends)
    return Levels(steps, ((low + high) / 2, high - low), None)
