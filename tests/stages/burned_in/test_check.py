"""What happens to an image, by its header, what the engine finds in it, and the configuration."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from benchmarks.inscriptions import Inscription, burn
from medfocus.pipeline.config import load_config
from medfocus.pipeline.errors import UsageError
from medfocus.stages.burned_in import BurnedInText, check, is_installed, ocr
from medfocus.stages.burned_in.ocr import Line, TextReader
from medfocus.stages.burned_in_settings import (
    Action,
    Box,
    BurnedInSettings,
    Look,
    Template,
    TemplateError,
    read_templates,
)
from medfocus.stages.formats.picture import ImageError
from medfocus.starter.phantoms import draw

needs_ocr = pytest.mark.skipif(not is_installed(), reason="needs the extra: pip install 'medfocus[ocr]'")
NAME = Inscription("SMITH JOHN", "name", "DejaVuSans.ttf", 20, 255, light=True, turned=False, place=(0.01, 0.01))
SIZE = 320
# Where NAME is.
TOP_LEFT = (slice(0, 24), slice(0, 140))


def secondary_capture(**attributes: object) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.Modality = "1.2.840.10008.5.1.4.1.1.7", "OT"
    header.Rows = header.Columns = SIZE
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return header


def ultrasound(top: int, left: int, bottom: int, right: int, form: int = 1) -> Dataset:
    """A header with one region; the last row and column belong to it."""
    region = Dataset()
    region.RegionSpatialFormat = form
    region.RegionLocationMinY0, region.RegionLocationMinX0 = top, left
    region.RegionLocationMaxY1, region.RegionLocationMaxX1 = bottom, right
    return secondary_capture(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1", Modality="US", SequenceOfUltrasoundRegions=Sequence([region])
    )


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return np.minimum(draw(0, size=SIZE).image, 200)


@pytest.fixture(scope="module")
def named(clean: np.ndarray) -> np.ndarray:
    return burn(clean, NAME)[0]


class FixedReader:
    """Finds a line at the top left until that is black."""

    def lines(self, pixels: np.ndarray) -> Iterator[Line]:
        return (
            [Line("SMITH JOHN", 0.9, (4, 4, 20, 130))]
            if pixels[TOP_LEFT].max() == 255
            else [Line("R", 0.9, (0, 0, 9, 9))]
        )


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> "Checked":
    return Checked(monkeypatch)


class Checked:
    """Checks with a reader that is fast and sure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch

    def __call__(
        self,
        pixels: np.ndarray,
        header: Dataset | None,
        action: Action = "quarantine",
        look: Look = "auto",
        installed: bool = True,
        templates: tuple[Template, ...] = (),
    ) -> check.Finding:
        self.monkeypatch.setattr(check, "is_installed", lambda: installed)
        self.monkeypatch.setattr(check, "TextReader", FixedReader)
        return BurnedInText(BurnedInSettings(action, look, 3, templates)).check(pixels, header)


def test_an_image_at_risk_is_looked_at(checked: Checked, clean: np.ndarray, named: np.ndarray) -> None:
    found = checked(named, secondary_capture())
    assert (found.action, found.looked) == ("quarantine", True) and "text was found" in found.reason
    found = checked(clean, secondary_capture())
    assert (found.action, found.reason, found.looked) == ("keep", "", True) and found.pixels is clean


def test_a_declared_image_is_refused_though_no_text_is_found(checked: Checked, clean: np.ndarray) -> None:
    found = checked(clean, secondary_capture(BurnedInAnnotation="YES"))
    assert (found.action, found.looked) == ("quarantine", True) and "BurnedInAnnotation" in found.reason


def test_other_images_are_looked_at_only_if_all_are(checked: Checked, named: np.ndarray) -> None:
    ct = secondary_capture(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")
    for header in (ct, None):
        found = checked(named, header)
        assert (found.action, found.looked) == ("keep", False)
        assert checked(named, header, look="always").action == "quarantine"


@pytest.mark.parametrize(("look", "installed"), [("never", True), ("auto", False)])
def test_without_the_engine_the_header_decides(
    checked: Checked, clean: np.ndarray, named: np.ndarray, look: Look, installed: bool
) -> None:
    for pixels in (clean, named):
        found = checked(pixels, secondary_capture(), look=look, installed=installed)
        assert (found.action, found.looked) == ("quarantine", False)
        assert ("medfocus[ocr]" in found.reason) is not installed
        assert checked(pixels, None, look=look, installed=installed).action == "keep"
        assert checked(pixels, secondary_capture(), "black_out", look, installed).action == "quarantine"


def test_keep_looks_at_nothing(checked: Checked, named: np.ndarray) -> None:
    found = checked(named, secondary_capture(BurnedInAnnotation="YES"), "keep", "always", installed=False)
    assert (found.action, found.looked) == ("keep", False) and found.pixels is named


def test_lines_are_blacked_out_with_a_margin(checked: Checked, clean: np.ndarray, named: np.ndarray) -> None:
    found = checked(named, secondary_capture(), "black_out")
    assert found.action == "black_out" and found.reason == "blacked out: text that was found"
    assert not found.pixels[2:22, 2:132].any()
    assert np.array_equal(found.pixels[40:], clean[40:]) and named[TOP_LEFT].max() == 255
    colour = np.dstack([named] * 3)
    assert not checked(colour, secondary_capture(), "black_out").pixels[2:22, 2:132].any()
    assert checked(clean, secondary_capture(), "black_out").action == "keep"


def test_images_of_16_bits_are_looked_at_and_blacked_out(checked: Checked, named: np.ndarray) -> None:
    deep = named.astype(np.uint16) * 16
    found = checked(deep, secondary_capture(), "black_out")
    assert found.pixels.dtype == np.uint16 and not found.pixels[2:22, 2:132].any()
    assert np.array_equal(found.pixels[40:], deep[40:])


def test_text_that_is_left_is_refused(checked: Checked, named: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FixedReader, "lines", lambda self, pixels: iter([Line("SMITH", 0.9, (200, 200, 210, 250))]))
    found = checked(named, secondary_capture(), "black_out")
    assert found.action == "quarantine" and "left" in found.reason


@pytest.mark.parametrize("look", ["auto", "never"])
def test_what_lies_outside_the_regions_is_blacked_out(
    checked: Checked, clean: np.ndarray, named: np.ndarray, look: Look
) -> None:
    found = checked(named, ultrasound(40, 10, 299, 309), "black_out", look)
    assert found.action == "black_out"
    inside = np.zeros((SIZE, SIZE), bool)
    inside[40:300, 10:310] = True
    assert np.array_equal(found.pixels[inside], clean[inside]) and not found.pixels[~inside].any()


def test_regions_follow_an_image_that_is_shown_larger(checked: Checked) -> None:
    stretched = np.full((2 * SIZE, SIZE), 200, np.uint8)
    found = checked(stretched, ultrasound(40, 10, 299, 309), "black_out", "never")
    rows, columns = np.flatnonzero(found.pixels.any(1)), np.flatnonzero(found.pixels.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (80, 599, 10, 309)


def test_regions_that_leave_nothing_out_or_show_no_body_help_nothing(checked: Checked, named: np.ndarray) -> None:
    assert checked(named, ultrasound(0, 0, SIZE - 1, SIZE - 1), "black_out", "never").action == "quarantine"
    assert checked(named, ultrasound(40, 10, 299, 309, form=5), "black_out", "never").action == "quarantine"


TEMPLATES = """
- manufacturer: Acme
  model: Scanner 5
  modality: OT
  rows: 320
  columns: 320
  boxes:
    - {top: 0, left: 0, bottom: 24, right: 140}
"""


def test_a_template_blacks_out_where_its_device_writes(checked: Checked, named: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "devices.yaml").write_text(TEMPLATES)
    templates = read_templates(tmp_path / "devices.yaml")
    fitting = {"Manufacturer": " ACME ", "ManufacturerModelName": "Scanner 5"}
    found = checked(named, secondary_capture(**fitting), "black_out", "never", templates=templates)
    assert found.action == "black_out" and not found.pixels[TOP_LEFT].any() and found.pixels[30:].any()
    for other in (
        {"Manufacturer": "Other"},
        {"Rows": 321},
        {"Modality": "US"},
        {"ManufacturerModelName": "Scanner 55"},
    ):
        header = secondary_capture(**fitting | other)
        assert checked(named, header, "black_out", "never", templates=templates).action == "quarantine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {rows: 10, columns: 10, boxes: [{top: 0, left: 0, bottom: 5, right: 5}]}", "manufacturer or the model"),
        ("- {model: A, rows: 10, columns: 10, boxes: [{top: 0, left: 0, bottom: 11, right: 5}]}", "beyond"),
        ("- {model: A, rows: 10, columns: 10, boxes: [{top: 5, left: 0, bottom: 5, right: 5}]}", "bottom below"),
        ("- {model: A, rows: 10, columns: 10, boxes: []}", "boxes"),
        ("- {model: A, rows: 10, columns: 10, box: []}", "box"),
        ("a: [", "YAML"),
        ("a: 1", "the file"),
    ],
)
def test_a_wrong_template_is_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(text)
    with pytest.raises(TemplateError, match=message) as raised:
        read_templates(file)
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match=message):
        load_config(None, [f"burned_in.templates={file}"]).burned_in.settings()


def test_the_configuration_makes_the_settings(tmp_path: Path) -> None:
    assert load_config().burned_in.settings() == BurnedInSettings()
    (tmp_path / "devices.yaml").write_text(TEMPLATES)
    section = load_config(
        None, [f"burned_in.templates={tmp_path / 'devices.yaml'}", "burned_in.action=black_out"]
    ).burned_in
    (template,) = section.settings().templates
    assert template.boxes == (Box(top=0, left=0, bottom=24, right=140),) and section.settings().action == "black_out"


def test_markers_and_single_characters_are_no_text() -> None:
    for text in ("R", "L.", "PA", "SUP", "R LAT", "AP SUPINE", "10", "...", "- -"):
        assert not Line(text, 0.9, (0, 0, 1, 1)).counts(3)
    for text in ("KIM", "R SMITH", "1957-03-14", "李小龙", "AB1"):
        assert Line(text, 0.9, (0, 0, 1, 1)).counts(3)
    assert not Line("112", 0.7, (0, 0, 1, 1)).counts(3) and Line("1126", 0.7, (0, 0, 1, 1)).counts(3)


def test_texts_that_have_no_room_in_their_box_are_no_text() -> None:
    for text, box in (("201", (0, 0, 5, 9)), ("SMITH JOHN", (0, 0, 20, 30)), ("000", (0, 0, 325, 511))):
        assert not Line(text, 0.9, box).is_legible
    assert Line("SMITH JOHN", 0.9, (0, 0, 11, 60)).is_legible and Line("SMITH JOHN", 0.9, (0, 0, 60, 11)).is_legible


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "is_installed", lambda: False)
    with pytest.raises(ImageError, match=r"medfocus\[ocr\]") as raised:
        BurnedInText(BurnedInSettings(ocr="always"))
    assert raised.value.kind == "MissingDecoder"


@needs_ocr
def test_the_engine_finds_names_and_nothing_in_clean_images(clean: np.ndarray, named: np.ndarray) -> None:
    text = BurnedInText(BurnedInSettings())
    assert text.check(clean, secondary_capture()).action == "keep"
    found = text.check(named, secondary_capture())
    assert found.action == "quarantine" and "SMITH" not in found.reason
    assert text.check(np.dstack([named] * 3), secondary_capture()).action == "quarantine"
    assert text.check(named.astype(np.uint16) * 257, secondary_capture()).action == "quarantine"


@needs_ocr
def test_the_engine_leaves_nothing_when_it_blacks_out(named: np.ndarray) -> None:
    found = BurnedInText(BurnedInSettings(action="black_out")).check(named, secondary_capture())
    assert found.action == "black_out"
    _, (top, left, bottom, right) = burn(named, NAME)
    assert not found.pixels[top:bottom, left:right].any()


@needs_ocr
def test_the_engine_can_look_at_any_size() -> None:
    reader = TextReader()
    for shape in ((1, 1), (3, 400), (700, 20), (64, 64, 3)):
        assert not list(reader.lines(np.zeros(shape, np.uint8)))
        list(reader.lines(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)))
