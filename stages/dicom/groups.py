"""Attributes of one frame: of an enhanced multi-frame object in its functional groups (PS3.3 C.7.6.16), else above."""

from collections.abc import Sequence

from pydicom import Dataset

from medfocus.stages.dicom.attributes import items_of, number_of, numbers_of

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def macro_of(header: Dataset, number: int, keyword: str) -> Dataset | None:
    """The item of a functional group macro for a frame; that of the frame itself before the one that frames share.

    Args:
        header: the attributes.
        number: of the frame, from 0.
        keyword: of the macro's sequence, such as ``PixelMeasuresSequence``.
    """
    frames, shared = (items_of(header, f"{whose}FunctionalGroupsSequence") for whose in ("PerFrame", "Shared"))
    groups = [*frames[number : number + 1], *shared[:1]]
    return next((item for group in groups for item in items_of(group, keyword)[:1]), None)


def spacing_of(header: Dataset, number: int) -> tuple[float, float] | None:
    """The distances of rows and of columns in mm, in the patient, else on the detector, else on the film.

    None where no attribute has two numbers above zero.
    """
    places = [macro_of(header, number, "PixelMeasuresSequence"), header]
    for keyword in _SPACINGS:
        for place in places:
            pair = numbers_of(place, keyword, 2) if place is not None else None
            if pair and min(pair) > 0:
                return pair[0], pair[1]
    return None


def position_of(header: Dataset, number: int) -> tuple[float, float, float] | None:
    """The position of the first pixel in the patient's coordinate system in mm (PS3.3 C.7.6.2.1.1)."""
    macro = macro_of(header, number, "PlanePositionSequence")
    place = numbers_of(macro if macro is not None else header, "ImagePositionPatient", 3)
    return (place[0], place[1], place[2]) if place else None


def sides_of(header: Dataset, spacing: Sequence[float] | None) -> Sequence[float] | None:
    """Height and width of a pixel: its spacing in mm, else the aspect ratio; None where neither is known."""
    if spacing is not None:
        return spacing
    ratio = numbers_of(header, "PixelAspectRatio", 2)
    return ratio if ratio and min(ratio) > 0 else None


def slope_of(header: Dataset, number: int) -> tuple[float, float] | None:
    """Rescale slope and intercept of a frame (PS3.3 C.11.1); None where there are none."""
    macro = macro_of(header, number, "PixelValueTransformationSequence")
    place = macro if macro is not None else header
    slope, intercept = number_of(place, "RescaleSlope"), number_of(place, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    return 1.0 if slope is None else slope, intercept or 0.0
