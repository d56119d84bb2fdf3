"""Decides what happens to an image that text may be burned into."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from medfocus.stages.burned_in import areas
from medfocus.stages.burned_in.ocr import Line, TextReader, is_installed
from medfocus.stages.burned_in.risk import risk_of
from medfocus.stages.burned_in_settings import Action, BurnedInSettings

_INSTALL = "install medfocus[ocr] so that such images are looked at, or set burned_in.action"
_SET = "look at it, and set burned_in.action=black_out or keep if it may be packed"


@dataclass(frozen=True)
class Finding:
    """What the check makes of an image.

    Attributes:
        action: ``keep``; ``black_out`` where parts of ``pixels`` have been blacked out; ``quarantine``.
        reason: why, without any text of the image; empty for ``keep``.
        pixels: the image, of the type and shape that was given.
        looked: whether the OCR engine has looked at it.
    """

    action: Action
    reason: str
    pixels: np.ndarray
    looked: bool


class BurnedInText:
    """Checks images for burned-in text: by their headers, and by looking where a header signals a risk.

    An image that the OCR engine finds no text in is kept, whatever it is, unless BurnedInAnnotation is YES.

    Resources:
        One CPU core. Up to 0.5 GB of memory where the engine looks.

    Args:
        settings: what is looked at, and what happens to an image with text.

    Raises:
        ImageError: MissingDecoder where ``settings.ocr`` is ``always`` and the extra is not installed.
    """

    def __init__(self, settings: BurnedInSettings):
        self.settings = settings
        looks = settings.ocr == "always" or (settings.ocr == "auto" and is_installed())
        self._reader = TextReader() if looks and settings.action != "keep" else None

    def check(self, pixels: np.ndarray, header: Dataset | None) -> Finding:
        """Check one image.

        Args:
            pixels: uint8 [H, W] or [H, W, 3], or uint16 [H, W], as the image is shown.
            header: of the DICOM object; None for any other image, at which the engine looks only if ``ocr`` is
                ``always``.
        """
        risk = risk_of(header)
        if self.settings.action == "keep":
            return Finding("keep", "", pixels, looked=False)
        looks = self._reader is not None and (risk is not None or self.settings.ocr == "always")
        if self.settings.action == "black_out":
            return self._black_out(pixels, header, risk, looks)
        if looks and any(self._lines(_in_8_bits(pixels))):
            return Finding("quarantine", f"text was found in the pixels; {_SET}", pixels, looks)
        return self._without_text(pixels, header, risk, looks)

    def _without_text(self, pixels: np.ndarray, header: Dataset | None, risk: str | None, looked: bool) -> Finding:
        """What happens to an image in which no text was found, or looked for."""
        if risk is None or (looked and not _declared(header)):
            return Finding("keep", "", pixels, looked)
        if looked:
            return Finding("quarantine", f"the image is {risk}, and no text was found; {_SET}", pixels, looked)
        mend = _SET if self._reader is not None or self.settings.ocr == "never" else _INSTALL
        return Finding("quarantine", f"the image is {risk}, which may bear a name; {mend}", pixels, looked)

    def _black_out(self, pixels: np.ndarray, header: Dataset | None, risk: str | None, looks: bool) -> Finding:
        shape = pixels.shape[:2]
        known = None if risk is None or header is None else _known_areas(header, self.settings, shape)
        mask = np.zeros(shape, bool) if known is None else known
        lines: list[Line] = []
        if looks:
            shown = _blackened(_in_8_bits(pixels), mask)
            lines = list(self._lines(shown))
            mask = mask | areas.of_boxes([line.box for line in lines], shape)
            if lines and any(self._lines(_blackened(shown, mask))):
                return Finding("quarantine", "text is left in the pixels after black-out; look at it", pixels, looks)
        if known is None and not lines:
            return self._without_text(pixels, header, risk, looks)
        parts = ["where its device writes"] if known is not None else []
        parts += ["text that was found"] if lines else []
        return Finding("black_out", f"blacked out: {' and '.join(parts)}", _blackened(pixels, mask), looks)

    def _lines(self, pixels: np.ndarray) -> Iterator[Line]:
        """The lines in uint8 [H, W] or [H, W, 3] that count as text."""
        assert self._reader is not None
        return (line for line in self._reader.lines(pixels) if line.counts(self.settings.min_length))


def _known_areas(header: Dataset, settings: BurnedInSettings, shape: tuple[int, int]) -> np.ndarray | None:
    """Where a device writes, by its template, else by the ultrasound regions; None where neither is known."""
    by_template = areas.of_templates(settings.templates, header, shape)
    return areas.outside_regions(header, shape) if by_template is None else by_template


def _declared(header: Dataset | None) -> bool:
    return header is not None and str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES"


def _blackened(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = pixels.copy()
    out[mask] = 0
    return out


def _in_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Samples of 16 bits from their 0.5th to their 99.5th percentile; text is mostly beyond, thus black or white."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = np.percentile(pixels, (0.5, 99.5))
    shown: np.ndarray = np.clip((pixels - low) * (255 / max(high - low, 1.0)), 0, 255)
    return shown.astype(np.uint8)
