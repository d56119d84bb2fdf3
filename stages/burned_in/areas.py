"""Areas of an image that are blacked out, as masks: bool [H, W], true where text is or may be."""

from collections.abc import Iterable, Sequence

import numpy as np
from pydicom import Dataset

from medfocus.stages.burned_in.ocr import Rectangle
from medfocus.stages.burned_in_settings import Template

# Spatial formats of regions that show the body or its signals: 2D, M-mode, spectral and waveform (PS3.3 C.8.5.5.1.1).
_SHOWN = {1, 2, 3, 4}
# Space about a line of text, in heights of the line.
_MARGIN = 0.25


def outside_regions(header: Dataset, shape: tuple[int, int]) -> np.ndarray | None:
    """What lies outside the ultrasound regions (PS3.3 C.8.5.5).

    Args:
        header: of the image.
        shape: height and width of the image as it is shown.

    Returns:
        A mask; None where the header names no region that shows the body, or regions leave nothing out.
    """
    size = _stored_size(header)
    if size is None:
        return None
    mask = np.ones(shape, bool)
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        bounds = [region.get(f"RegionLocation{name}") for name in ("MinY0", "MinX0", "MaxY1", "MaxX1")]
        if region.get("RegionSpatialFormat") in _SHOWN and None not in bounds:
            top, left, bottom, right = bounds
            mask[_inner_slices((top, left, bottom + 1, right + 1), size, shape)] = False
    return None if mask.all() or not mask.any() else mask


def of_templates(templates: Sequence[Template], header: Dataset, shape: tuple[int, int]) -> np.ndarray | None:
    """The boxes of the templates that fit an image; None where none fits."""
    size = _stored_size(header)
    fitting = [template for template in templates if size == (template.rows, template.columns)]
    fitting = [template for template in fitting if _fits(template, header)]
    if size is None or not fitting:
        return None
    boxes = [(box.top, box.left, box.bottom, box.right) for template in fitting for box in template.boxes]
    return _filled(boxes, size, shape)


def of_boxes(boxes: Iterable[Rectangle], shape: tuple[int, int]) -> np.ndarray:
    """Boxes of lines (top, left, bottom, right), each with a margin."""
    wider = []
    for top, left, bottom, right in boxes:
        margin = 2 + _MARGIN * min(bottom - top, right - left)
        wider.append((top - margin, left - margin, bottom + margin, right + margin))
    return _filled(wider, shape, shape)


def _filled(boxes: Iterable[Rectangle], size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[_outer_slices(box, size, shape)] = True
    return mask


def _outer_slices(box: Rectangle, size: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels that a box touches. It is in pixels of an image of ``size``, which is shown with ``shape``."""
    down, across = shape[0] / size[0], shape[1] / size[1]
    top, left = max(0, int(np.floor(box[0] * down))), max(0, int(np.floor(box[1] * across)))
    bottom, right = max(0, int(np.ceil(box[2] * down))), max(0, int(np.ceil(box[3] * across)))
    return slice(top, bottom), slice(left, right)


def _inner_slices(box: Rectangle, size: tuple[int, int], shape: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels that lie in a box as a whole."""
    down, across = shape[0] / size[0], shape[1] / size[1]
    top, left = max(0, int(np.ceil(box[0] * down))), max(0, int(np.ceil(box[1] * across)))
    bottom, right = max(0, int(np.floor(box[2] * down))), max(0, int(np.floor(box[3] * across)))
    return slice(top, bottom), slice(left, right)


def _stored_size(header: Dataset) -> tuple[int, int] | None:
    """Rows and columns of the stored image, which differ from the shown one where its pixels are not square."""
    rows, columns = header.get("Rows"), header.get("Columns")
    return (int(rows), int(columns)) if rows and columns else None


def _fits(template: Template, header: Dataset) -> bool:
    """Whether an image is from the device of a template."""
    pairs = (
        (template.manufacturer, "Manufacturer"),
        (template.model, "ManufacturerModelName"),
        (template.modality, "Modality"),
    )
    return all(wanted is None or _plain(wanted) == _plain(header.get(keyword)) for wanted, keyword in pairs)


def _plain(value: object) -> str:
    return str(value or "").strip().casefold()
