"""Which headers signal that text may be burned in."""

import pytest
from pydicom import Dataset
from pydicom.uid import UID

from medfocus.stages.burned_in import risk_of

CT, MR, SC, US = (f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("2", "4", "7", "6.1"))
SLIDE, PHOTOGRAPH = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.5.1.4.1.1.77.1.4"


def header(sop_class: str = CT, modality: str = "CT", **attributes: object) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = UID(sop_class), modality
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


WITH_TEXT = {
    "secondary capture": header(SC, "CT"),
    "multi-frame true colour secondary capture": header(f"{SC}.4", "OT"),
    "ultrasound": header(US, "US"),
    "ultrasound of a retired class": header("1.2.840.10008.5.1.4.1.1.6", "US"),
    "ultrasound by its modality": header("1.2.3", "US"),
    "bone densities": header(SC, "BMD"),
    "screen save": header(CT, "CT", ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
    "dose sheet": header(CT, "CT", ImageType=["ORIGINAL", "PRIMARY"], SeriesDescription="Dose Report"),
    "patient protocol": header(CT, "CT", SeriesDescription="Patient Protocol"),
    "label of a slide": header(SLIDE, "SM", ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"]),
    "digitised film": header("1.2.840.10008.5.1.4.1.1.1", "CR", ConversionType="DF"),
}
PERHAPS = {
    "photograph": header(PHOTOGRAPH, "XC"),
    "endoscopy": header("1.2.3", "ES"),
    "derived, secondary": header(MR, "MR", ImageType=["DERIVED", "SECONDARY"]),
    "modality OT": header(CT, "OT"),
    "nothing known": Dataset(),
    "private class without a modality": header("1.3.46.670589.11.0.0.12.1", ""),
}
NONE = {
    "CT": header(),
    "axial CT": header(ImageType=["ORIGINAL", "PRIMARY", "AXIAL"]),
    "MR without a modality": header(MR, ""),
    "processed radiograph": header("1.2.840.10008.5.1.4.1.1.1.1", "DX", ImageType=["DERIVED", "PRIMARY"]),
    "reformatted CT": header(ImageType=["DERIVED", "SECONDARY", "MPR"]),
    "slide": header(SLIDE, "SM", ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
    "a protocol's name": header(SeriesDescription="Abdomen venous"),
    "one value of ImageType": header(ImageType="ORIGINAL"),
}


@pytest.mark.parametrize("name", WITH_TEXT)
def test_images_that_mostly_bear_text_are_at_risk_whatever_is_stated(name: str) -> None:
    for stated in ("YES", "NO", "", None):
        WITH_TEXT[name].BurnedInAnnotation = stated
        assert risk_of(WITH_TEXT[name])


@pytest.mark.parametrize("name", PERHAPS)
def test_of_cameras_and_derived_images_a_no_is_believed(name: str) -> None:
    for stated, at_risk in (("YES", True), ("NO", False), ("", True)):
        PERHAPS[name].BurnedInAnnotation = stated
        assert bool(risk_of(PERHAPS[name])) is at_risk


@pytest.mark.parametrize("name", NONE)
def test_other_images_are_at_risk_only_by_the_attribute(name: str) -> None:
    for stated, at_risk in (("YES", True), ("NO", False), ("", False)):
        NONE[name].BurnedInAnnotation = stated
        assert bool(risk_of(NONE[name])) is at_risk


def test_of_an_image_without_a_header_nothing_is_known() -> None:
    assert risk_of(None) is None


def test_no_value_of_an_attribute_is_in_the_reason() -> None:
    secret = header(SC, "OT", SeriesDescription="Dose Report SMITH", ImageType=["DERIVED", "SECONDARY", "SCREEN SMITH"])
    secret.ConversionType = "SMITH"
    assert "SMITH" not in str(risk_of(secret))
