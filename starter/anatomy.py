"""Anatomy of the phantoms: for each organ, outlines that stand for its parts, and where a lesion may sit.

A part is drawn with a brightness for each modality (0 black to 1 white): what is dense is bright on a radiograph
and on CT; on MRI fat and marrow are bright, air and cortical bone dark.
"""

from dataclasses import dataclass

import numpy as np

from starter.canvas import Canvas

MODALITIES = ("radiograph", "CT", "MRI")
# Brightness on radiograph, CT and MRI.
_TISSUE: dict[str, tuple[float, float, float]] = {
    "background": (0.04, 0.02, 0.02),
    "soft tissue": (0.42, 0.45, 0.42),
    "fat": (0.30, 0.28, 0.78),
    "lung": (0.20, 0.12, 0.10),
    "heart": (0.62, 0.55, 0.50),
    "bone": (0.78, 0.90, 0.20),
    "marrow": (0.66, 0.70, 0.72),
    "liver": (0.50, 0.56, 0.50),
    "kidney": (0.54, 0.62, 0.58),
    "gas": (0.15, 0.05, 0.05),
    "brain": (0.46, 0.48, 0.55),
    "ventricle": (0.36, 0.30, 0.18),
    "white matter": (0.44, 0.44, 0.66),
}

# Every part that an organ may be drawn with.
PARTS = (
    "body",
    "bone",
    "brain",
    "cortex",
    "fat",
    "heart",
    "kidney",
    "liver",
    "lung",
    "muscle",
    "scalp",
    "skull",
    "spine",
    "stomach",
    "ventricle",
    "white matter",
)


@dataclass(frozen=True)
class Anatomy:
    """A drawn organ: the picture before noise, float32 [S, S], its parts as masks, and the part that hosts lesions."""

    picture: np.ndarray
    parts: dict[str, np.ndarray]
    host: str


class _Sketch:
    """A picture in the making: paints a part and keeps its mask."""

    def __init__(self, random: np.random.Generator, size: int, modality: str):
        self.random = random
        self.canvas = Canvas.bent(random, size)
        self.column = MODALITIES.index(modality)
        self.picture = np.full((size, size), self.brightness("background"), np.float32)
        self.parts: dict[str, np.ndarray] = {}

    def brightness(self, tissue: str) -> float:
        return _TISSUE[tissue][self.column]

    def vary(self, value: float, share: float = 0.08) -> float:
        return float(value * self.random.uniform(1 - share, 1 + share))

    def part(
        self, name: str, tissue: str, x: float, y: float, rx: float, ry: float, angle: float = 0.0, vary: float = 0.08
    ) -> None:
        """Paint an ellipse of a tissue about the given place and size; parts of one name add up."""
        shift = self.random.uniform(-0.012, 0.012, 2)
        rx, ry = self.vary(rx, vary), self.vary(ry, vary)
        outline = self.canvas.ellipse(x + shift[0], y + shift[1], rx, ry, angle)
        outline.fill(self.picture, self.vary(self.brightness(tissue), 0.06))
        mask = outline.mask(self.canvas.size)
        self.parts[name] = self.parts[name] | mask if name in self.parts else mask

    def finish(self, host: str) -> Anatomy:
        return Anatomy(self.picture, self.parts, host)


def draw_chest(random: np.random.Generator, size: int, modality: str) -> Anatomy:
    sketch = _Sketch(random, size, modality)
    upright = modality == "radiograph"
    tall = 0.50 if upright else 0.33
    sketch.part("body", "soft tissue", 0.5, 0.55 if upright else 0.5, 0.44, tall)
    if upright:
        sketch.part("spine", "bone", 0.5, 0.55, 0.035, 0.48)
    else:
        sketch.part("spine", "bone", 0.5, 0.70, 0.05, 0.045)
    for x, lean in ((0.31, 0.12), (0.69, -0.12)):
        sketch.part("lung", "lung", x, 0.5 if upright else 0.49, 0.135, 0.30 if upright else 0.20, lean)
    sketch.part("heart", "heart", 0.55, 0.62 if upright else 0.46, 0.11, 0.13 if upright else 0.10, -0.5)
    sketch.parts["lung"] &= ~sketch.parts["heart"]
    if upright:
        for step in range(5):
            _rib(sketch, 0.24 + 0.12 * step)
    return sketch.finish("lung")


def _rib(sketch: _Sketch, y: float) -> None:
    for x in (0.30, 0.70):
        outline = sketch.canvas.ellipse(x, y + 0.08, 0.19, 0.10)
        upper = sketch.canvas.y[outline.window] < y + 0.08
        sketch.picture[outline.window] += np.clip(1 - np.abs(outline.near) / 0.05, 0, 1) * upper * np.float32(0.10)


def draw_abdomen(random: np.random.Generator, size: int, modality: str) -> Anatomy:
    sketch = _Sketch(random, size, modality)
    sketch.part("fat", "fat", 0.5, 0.5, 0.46, 0.36)
    sketch.part("body", "soft tissue", 0.5, 0.5, 0.42, 0.32)
    sketch.part("spine", "bone", 0.5, 0.68, 0.06, 0.055)
    sketch.part("liver", "liver", 0.31, 0.44, 0.20, 0.19, 0.4)
    sketch.part("stomach", "gas", 0.66, 0.36, 0.09, 0.06, -0.3)
    for x, lean in ((0.34, 0.3), (0.66, -0.3)):
        sketch.part("kidney", "kidney", x, 0.66, 0.06, 0.085, lean)
    sketch.parts["liver"] &= ~sketch.parts["kidney"]
    return sketch.finish("liver")


def draw_brain(random: np.random.Generator, size: int, modality: str) -> Anatomy:
    sketch = _Sketch(random, size, modality)
    sketch.part("scalp", "fat", 0.5, 0.5, 0.375, 0.45, vary=0.04)
    sketch.part("skull", "bone", 0.5, 0.5, 0.355, 0.43, vary=0.02)
    sketch.part("brain", "brain", 0.5, 0.5, 0.32, 0.39, vary=0.02)
    for x, lean in ((0.40, 0.2), (0.60, -0.2)):
        sketch.part("white matter", "white matter", x, 0.5, 0.11, 0.24, lean)
    for x, lean in ((0.455, 0.25), (0.545, -0.25)):
        sketch.part("ventricle", "ventricle", x, 0.46, 0.025, 0.10, lean, vary=0.2)
    middle = np.abs(sketch.canvas.x - 0.5) < 0.003
    sketch.picture[middle & sketch.parts["brain"]] *= 0.8
    sketch.parts["brain"] &= ~sketch.parts["ventricle"]
    return sketch.finish("brain")


def draw_knee(random: np.random.Generator, size: int, modality: str) -> Anatomy:
    sketch = _Sketch(random, size, modality)
    sketch.part("fat", "fat", 0.5, 0.5, 0.30, 0.62)
    sketch.part("muscle", "soft tissue", 0.5, 0.5, 0.26, 0.60)
    for y, reach in ((0.10, 0.30), (0.92, 0.30)):
        sketch.part("cortex", "bone", 0.5, y, 0.12, reach, vary=0.04)
        sketch.part("bone", "marrow", 0.5, y, 0.10, reach, vary=0.02)
    for x in (0.42, 0.58):
        sketch.part("cortex", "bone", x, 0.36, 0.10, 0.085, vary=0.04)
        sketch.part("bone", "marrow", x, 0.36, 0.085, 0.07, vary=0.02)
        sketch.part("cortex", "bone", x, 0.62, 0.105, 0.07, vary=0.04)
        sketch.part("bone", "marrow", x, 0.62, 0.09, 0.055, vary=0.02)
    return sketch.finish("bone")


ORGANS = {"chest": draw_chest, "abdomen": draw_abdomen, "brain": draw_brain, "knee": draw_knee}
