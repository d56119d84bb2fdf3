"""What ``pack`` is compared with: its decoders alone, a plain loop with pydicom, and dicom2jpg."""

import importlib.util
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from medfocus.stages.decode import READERS, media_type_of
from medfocus.stages.dicom import Display, FrameChoice, is_dicom, read_frames

_MOST_PIXELS = 100_000_000


def decode(path: Path) -> int:
    """Read a file and decode it to the pixels that a viewer shows; their number."""
    content = path.read_bytes()
    if is_dicom(content[:4096]):
        display = Display(_MOST_PIXELS)
        return sum(frame.pixels.size for frame in read_frames(content, FrameChoice(), display))
    return int(READERS[media_type_of(content) or ""](content, _MOST_PIXELS).upright().size)


def save_with_pydicom(path: Path) -> int:
    """Decode a DICOM file as pydicom's documentation does, scale it to 8 bits, and save it as PNG; its bytes."""
    header = pydicom.dcmread(path)
    samples = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header).astype(float)
    low, high = samples.min(), samples.max()
    buffer = io.BytesIO()
    Image.fromarray(((samples - low) / (high - low) * 255).astype(np.uint8)).save(buffer, "PNG")
    return len(buffer.getvalue())


def save_with_dicom2jpg(path: Path) -> int:
    """Convert a DICOM file to pixels with dicom2jpg and save it as PNG; its bytes."""
    import dicom2jpg

    buffer = io.BytesIO()
    Image.fromarray(dicom2jpg.dicom2img(path)).save(buffer, "PNG")
    return len(buffer.getvalue())


def has_dicom2jpg() -> bool:
    """Whether dicom2jpg is installed."""
    return importlib.util.find_spec("dicom2jpg") is not None


def images_per_second(function: Callable[[Path], int], paths: Sequence[Path], processes: int) -> float:
    """Files that so many processes handle in a second, without their start."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(function, paths[:processes]))  # each process has imported what it needs
        started = monotonic()
        assert all(pool.map(function, paths, chunksize=4))
        return len(paths) / (monotonic() - started)
