"""Text that is burned into the pixels of an image: its risk by the header, and what the OCR engine finds."""

from medfocus.stages.burned_in.check import BurnedInText, Finding
from medfocus.stages.burned_in.ocr import is_installed
from medfocus.stages.burned_in.risk import risk_of

__all__ = ["BurnedInText", "Finding", "is_installed", "risk_of"]
