"""From the stored samples of a grey DICOM image to what a viewer shows (PS3.4 N.2).

The order: modality LUT or rescale, VOI LUT or window, presentation LUT shape (for MONOCHROME1, inverse).
"""

from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from medfocus.stages.dicom.attributes import items_of, number_of, numbers_of, text_of
from medfocus.stages.dicom.groups import macro_of, slope_of
from medfocus.stages.dicom.layout import Layout
from medfocus.stages.dicom.lookup import LookUp, lookup_of
from medfocus.stages.formats.levels import Levels
from medfocus.stages.formats.picture import ImageError

_FULL = 65535
# SOP classes (XA and XRF) whose Modality LUT gives the intensity of X-rays. It is not for display (PS3.17 FFF.2.3).
_TABLE_TO_MEASURE = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2")
# Samples of at most so many bits without a window are shown by their value.
_BITS_BY_VALUE = 8
# Share of the samples below the window, and share above it, where the header names none.
_CLIPPED_SHARE = 0.005


@dataclass(frozen=True)
class Rescale:
    """A linear modality transform."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Transform stored values."""
        return values * self.slope + self.intercept


@dataclass(frozen=True)
class Ends:
    """A linear window: ``low`` and less is black, ``high`` and more is white. Without width, above ``low`` is white."""

    low: float
    high: float


@dataclass(frozen=True)
class Sigmoid:
    """The window function SIGMOID (PS3.3 C.11.2.1.3.1)."""

    centre: float
    width: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Brightness in 0..1."""
        with np.errstate(over="ignore"):
            brightness: np.ndarray = 1 / (1 + np.exp(-4 * (values - self.centre) / self.width))
        return brightness


@dataclass(frozen=True)
class Greys:
    """How the samples of a frame are shown.

    Attributes:
        modality: from stored values to units of the modality.
        voi: from units of the modality to brightness; None where the window is computed from the data.
        inverse: whether large values are dark.
        padding: the smallest and the largest stored value of pixels that show nothing; None where there are none.
    """

    modality: Rescale | LookUp
    voi: Ends | Sigmoid | LookUp | None
    inverse: bool
    padding: tuple[float, float] | None


def greys_of(header: Dataset, number: int, layout: Layout, window: int) -> Greys:
    """Read how a frame is shown.

    Args:
        header: the attributes.
        number: of the frame, from 0.
        layout: how the pixels are stored.
        window: index of the window where there are several; VOI LUTs come before windows.

    Raises:
        ImageError: Undecodable or Unsupported.
    """
    modality = _modality(header, number, layout)
    low, high = _range_of(layout)
    negative = not isinstance(modality, LookUp) and min(modality(np.array([low, high]))) < 0
    voi = _voi(header, number, window, signed=bool(negative), floating=layout.floating)
    if voi is None and layout.stored <= _BITS_BY_VALUE:
        ends = (0.0, modality.full) if isinstance(modality, LookUp) else sorted(modality(np.array([low, high])))
        voi = Ends(float(ends[0]), float(ends[1]))
    shape = text_of(header, "PresentationLUTShape")
    inverse = shape == "INVERSE" if shape in ("INVERSE", "IDENTITY") else layout.photometric == "MONOCHROME1"
    return Greys(modality, voi, inverse, _padding(header, layout))


def levels_of(values: np.ndarray, weights: np.ndarray | None, greys: Greys) -> Levels:
    """Convert stored values to steps of brightness.

    Args:
        values: stored values, int64 or float64.
        weights: how many pixels have each value, of the same shape; None for one each.
        greys: how they are shown.

    Raises:
        ImageError: Undecodable where the window lies nowhere.
    """
    padding = None
    if greys.padding is not None:
        padding = (values >= greys.padding[0]) & (values <= greys.padding[1])
        padding = padding if padding.any() else None
    voi, modality = greys.voi, greys.modality
    if voi is None:
        voi = _window_of(modality(values), weights, padding)
    if isinstance(voi, Ends) and isinstance(modality, Rescale):
        steps, low, high = _linear(values, modality, voi, greys.inverse)
    else:
        steps, low, high = _curved(modality(values), modality, voi, greys.inverse)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("Undecodable", "the window lies at no finite stored value")
    if padding is not None and low < 0:  # the step 0 of padding is to be black
        lift = min(np.ceil(-low), max(_FULL - steps.max(), 0))
        steps, low, high = steps + lift, low + lift, high + lift
    return Levels(steps, ((low + high) / 2, high - low), padding)


def _linear(values: np.ndarray, modality: Rescale, voi: Ends, inverse: bool) -> tuple[np.ndarray, float, float]:
    """Steps, and the ends of the window in steps, where brightness rises or falls in proportion to the values.

    A step is one stored value; where these are floats, or reach over more than 65536, it is a part of their range.
    """
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    step = 1.0 if values.dtype.kind == "i" and most - least <= _FULL else (most - least) / _FULL or 1.0
    black, white = ((end - modality.intercept) / modality.slope for end in (voi.low, voi.high))
    if inverse:
        black, white = white, black
    if (modality.slope > 0) != inverse:
        return (values - least) / step, (black - least) / step, (white - least) / step
    low, high = (most - black) / step, (most - white) / step
    if low == high:  # a threshold includes its end where values fall
        low = high = np.ceil(low) - 0.5
    return (most - values) / step, low, high


def _curved(
    values: np.ndarray, modality: Rescale | LookUp, voi: Ends | Sigmoid | LookUp, inverse: bool
) -> tuple[np.ndarray, float, float]:
    """Steps, and the ends of the window in steps, where a table or a curve gives the brightness of values."""
    if isinstance(voi, LookUp):
        steps, full, low, high = voi(values), voi.full, 0.0, voi.full
    elif isinstance(voi, Sigmoid):
        steps, full, low, high = voi(values) * _FULL, float(_FULL), 0.0, float(_FULL)
    else:
        assert isinstance(modality, LookUp)
        steps, full, low, high = values, modality.full, voi.low, voi.high
    return (full - steps, full - high, full - low) if inverse else (steps, low, high)


def _window_of(values: np.ndarray, weights: np.ndarray | None, padding: np.ndarray | None) -> Ends:
    """The 0.5th to the 99.5th percentile of the finite values that are no padding, interpolated as numpy does."""
    keep = np.isfinite(values)
    if padding is not None:
        keep &= ~padding
    if weights is None:
        weights = np.ones(values.shape, np.int64)
    keep &= weights > 0
    if not keep.any():
        return Ends(0.0, 0.0)
    kept, counts = values[keep], weights[keep]
    order = np.argsort(kept, kind="stable")
    kept, ranks = kept[order], np.cumsum(counts[order])
    place, between = divmod(_CLIPPED_SHARE * (ranks[-1] - 1), 1)
    last = ranks[-1] - 1
    ends = []
    for first, second in ((place, place + 1), (last - place, last - place - 1)):
        one, other = (kept[np.searchsorted(ranks, min(max(rank, 0), last), side="right")] for rank in (first, second))
        ends.append(float(one + (other - one) * between))
    return Ends(*ends)


def _range_of(layout: Layout) -> tuple[int, int]:
    """The smallest and the largest value that can be stored."""
    if layout.signed:
        return -(2 ** (layout.stored - 1)), 2 ** (layout.stored - 1) - 1
    return 0, 2**layout.stored - 1


def _modality(header: Dataset, number: int, layout: Layout) -> Rescale | LookUp:
    """The modality transform of a frame."""
    pair = slope_of(header, number)
    if pair is not None:
        if pair[0] == 0:
            raise ImageError("Undecodable", "the rescale slope is zero, so that all pixels are equal")
        return Rescale(*pair)
    tables = [] if text_of(header, "SOPClassUID") in _TABLE_TO_MEASURE else items_of(header, "ModalityLUTSequence")
    for item in tables[:1]:
        return lookup_of(item, signed=layout.signed, little=bool(header.original_encoding[1]))
    return Rescale()


def _voi(header: Dataset, number: int, index: int, *, signed: bool, floating: bool) -> Ends | Sigmoid | LookUp | None:
    """The VOI LUT or the window of a frame, of several the one at an index, else the first."""
    macro = macro_of(header, number, "FrameVOILUTSequence")
    place = macro if macro is not None else header
    tables = items_of(place, "VOILUTSequence")
    centres, widths = numbers_of(place, "WindowCenter") or (), numbers_of(place, "WindowWidth") or ()
    windows = [(centre, width) for centre, width in zip(centres, widths, strict=False) if width > 0]
    count = len(tables) + len(windows)
    if not count:
        return None
    chosen = index if index < count else 0
    if chosen < len(tables):
        return lookup_of(tables[chosen], signed=signed, little=bool(header.original_encoding[1]))
    function = text_of(place, "VOILUTFunction") or "LINEAR"
    exact = floating and function == "LINEAR"  # whose halves are for whole numbers
    return window_of(*windows[chosen - len(tables)], "LINEAR_EXACT" if exact else function)


def window_of(centre: float, width: float, function: str) -> Ends | Sigmoid:
    """A window by its function (PS3.3 C.11.2.1.2.1 and C.11.2.1.3).

    Args:
        centre: in units of the modality.
        width: in units of the modality, above zero.
        function: LINEAR, LINEAR_EXACT or SIGMOID. LINEAR needs a width of at least 1; below, it counts as LINEAR_EXACT.

    Raises:
        ImageError: Unsupported for another function.
    """
    if function == "SIGMOID":
        return Sigmoid(centre, width)
    if function == "LINEAR" and width >= 1:
        return Ends(centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
    if function in ("LINEAR", "LINEAR_EXACT"):
        return Ends(centre - width / 2, centre + width / 2)
    raise ImageError("Unsupported", "the VOI LUT function is none of LINEAR, LINEAR_EXACT and SIGMOID")


def _padding(header: Dataset, layout: Layout) -> tuple[float, float] | None:
    """The stored values of pixels that pad the image (PS3.3 C.7.5.1.1.2); None where none can occur."""
    value = number_of(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number_of(header, "PixelPaddingRangeLimit")
    least, most = _range_of(layout)
    ends = []
    for end in (value, value if limit is None else limit):
        if layout.signed and end > most:
            end -= 2**layout.allocated  # written as unsigned
        elif not layout.signed and end < 0:
            end += 2**layout.allocated  # written as signed
        ends.append(end)
    low, high = min(ends), max(ends)
    return None if low > most or high < least else (low, high)
