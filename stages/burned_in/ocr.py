"""Finds lines of text in an image with the OCR engine of the package rapidocr, an extra."""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from medfocus.stages.formats.picture import ImageError

# Side of the parts of an image in pixels that the engine is given, and how far they overlap: text is found by its share
# of the picture (docs/burned-in-text.md).
_TILE, _OVERLAP = 384, 96
# Longer side of a part as the engine is given it.
_INPUT = 640
# Pixels that are added on each side, since the engine finds less at the very edge.
_BORDER = 16
# Shorter side in pixels above which an image is reduced, since its text is larger, too.
_SIDE = 1536
# Least and most height in pixels of the box of a line, which has a margin, and its least width for each character.
_LOWEST, _HIGHEST, _NARROWEST = 8, 128, 3.5
# Least score of a line with fewer letters and digits than this. Those of longer lines have 0.5.
_SHORT, _SURE = 4, 0.8
_PARAMETERS = {
    "Global.log_level": "critical",
    "Global.text_score": 0.5,
    "Det.box_thresh": 0.25,
    "Det.mean": [0.485, 0.456, 0.406],
    "Det.std": [0.229, 0.224, 0.225],
    "Det.limit_type": "max",
    "Det.limit_side_len": _INPUT,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}
# Words that say how a body lies, which technicians put beside it; none of them names a patient.
_MARKERS = (
    {
        "L",
        "R",
        "A",
        "P",
        "H",
        "F",
        "S",
        "I",
        "LT",
        "RT",
        "LEFT",
        "RIGHT",
        "SUP",
        "INF",
        "ANT",
        "POST",
        "AP",
        "PA",
        "LAT",
    }
    | {"LL", "RL", "LLAT", "RLAT", "OBL", "LAO", "RAO", "SUPINE", "PRONE", "ERECT", "UPRIGHT", "SITTING", "DECUB"}
    | {"PORTABLE", "MOBILE", "CC", "MLO", "ML", "LM", "RCC", "LCC", "RMLO", "LMLO", "RML", "LML"}
)


Rectangle = tuple[float, float, float, float]
"""Top, left, bottom and right of a part of an image, in pixels."""


@dataclass(frozen=True)
class Line:
    """A line of text.

    Attributes:
        text: what the engine reads; it may identify a patient and goes nowhere.
        score: of the reading, 0..1.
        box: where it is.
    """

    text: str
    score: float
    box: Rectangle

    @property
    def is_legible(self) -> bool:
        """Whether the box has room for the characters; the engine also reads texts in specks of noise."""
        height, width = self.box[2] - self.box[0], self.box[3] - self.box[1]
        characters = max(1, len("".join(_words(self.text))))
        return _LOWEST <= min(height, width) <= _HIGHEST and max(height, width) >= _NARROWEST * characters

    def counts(self, min_length: int) -> bool:
        """Whether this is text: not a single character, and not only markers such as ``L`` or ``SUPINE``."""
        words = _words(self.text)
        characters = sum(map(len, words))
        is_read = self.score >= _SURE or characters >= _SHORT
        return is_read and characters >= min_length and not _MARKERS.issuperset(words)

    def moved(self, down: float, across: float) -> "Line":
        """The line in an image that starts above and left of this one, in pixels."""
        top, left, bottom, right = self.box
        return replace(self, box=(top + down, left + across, bottom + down, right + across))

    def scaled(self, factor: float) -> "Line":
        """The line in an image that is larger by a factor."""
        top, left, bottom, right = self.box
        return replace(self, box=(top * factor, left * factor, bottom * factor, right * factor))


def _words(text: str) -> list[str]:
    """Runs of letters and digits, in capital letters."""
    return re.findall(r"[^\W_]+", text.upper())


def is_installed() -> bool:
    """Whether the engine is there: the extra ``ocr``."""
    return all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))


class TextReader:
    """The OCR engine. It uses one thread, and its weights come with the package: nothing is downloaded.

    Raises:
        ImageError: MissingDecoder where the package is not installed.
    """

    def __init__(self) -> None:
        if not is_installed():
            text = "looking for burned-in text needs the package rapidocr; install it: pip install 'medfocus[ocr]'"
            raise ImageError("MissingDecoder", text)
        from rapidocr import RapidOCR

        self._engine: Any = RapidOCR(params=_PARAMETERS)
        self._load()

    def _load(self) -> None:
        """Read a text, since the engine loads its weights when it first meets one."""
        canvas = Image.new("L", (128, 32))
        ImageDraw.Draw(canvas).text((8, 8), "MedFocus", fill=255)
        list(self._lines_of_tile(canvas))

    def lines(self, pixels: np.ndarray) -> Iterator[Line]:
        """The lines of text in an image. Those at the seam of two tiles may come in parts, and twice.

        Args:
            pixels: uint8 [H, W] or [H, W, 3].
        """
        image = Image.fromarray(pixels)
        reduced = max(1.0, min(image.size) / _SIDE)
        if reduced > 1:
            image = image.resize((round(image.width / reduced), round(image.height / reduced)), Image.Resampling.BOX)
        samples = np.asarray(image)
        samples = np.pad(samples, [(_BORDER, _BORDER)] * 2 + [(0, 0)] * (samples.ndim - 2), mode="edge")
        for top in _starts(samples.shape[0]):
            for left in _starts(samples.shape[1]):
                tile = Image.fromarray(samples[top : top + _TILE, left : left + _TILE])
                for line in self._lines_of_tile(tile):
                    if line.is_legible:
                        yield line.moved(top - _BORDER, left - _BORDER).scaled(reduced)

    def _lines_of_tile(self, tile: Image.Image) -> Iterator[Line]:
        factor = _INPUT / max(tile.size)
        size = (max(1, round(tile.width * factor)), max(1, round(tile.height * factor)))
        samples = np.asarray(tile.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        if samples.min() == samples.max():
            return
        found = self._engine(np.ascontiguousarray(samples[..., ::-1]))  # it takes blue, green and red
        if found.boxes is not None:
            for text, score, corners in zip(found.txts, found.scores, found.boxes, strict=True):
                yield Line(text, score, _rectangle(corners / factor))


def _starts(length: int) -> list[int]:
    """Where the tiles along a side start: they cover it, each the same distance from the next."""
    if length <= _TILE:
        return [0]
    count = -(-(length - _OVERLAP) // (_TILE - _OVERLAP))
    return [round(index * (length - _TILE) / (count - 1)) for index in range(count)]


def _rectangle(corners: np.ndarray) -> Rectangle:
    """The rectangle around four corners [4, 2] (across, down)."""
    left, top = corners.min(axis=0)
    right, bottom = corners.max(axis=0)
    return float(top), float(left), float(bottom), float(right)
