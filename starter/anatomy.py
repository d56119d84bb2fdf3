"""The anatomy of the phantoms: for each organ the outlines of its parts, and the part that lesions lie in.

A part has a brightness for each modality, from 0 (black) to 1 (white). Dense tissue is bright on a radiograph and on
CT. On MRI, fat and marrow are bright, and air and cortical bone are dark; water is dark on a T1-weighted image and
bright on a T2-weighted one.
"""

from dataclasses import dataclass

import numpy as np

from medfocus.starter.canvas import Canvas, smooth_field

MODALITIES = ("radiograph", "CT", "MRI")
"""The modalities of the phantoms."""
# Brightness on radiograph, CT, T1-weighted MRI and T2-weighted MRI.
_TISSUE: dict[str, tuple[float, float, float, float]] = {
    "background": (0.04, 0.02, 0.02, 0.02),
    "soft tissue": (0.42, 0.45, 0.42, 0.30),
    "fat": (0.30, 0.28, 0.78, 0.62),
    "lung": (0.20, 0.12, 0.10, 0.08),
    "heart": (0.62, 0.55, 0.50, 0.36),
    "bone": (0.78, 0.90, 0.20, 0.14),
    "marrow": (0.66, 0.70, 0.72, 0.50),
    "liver": (0.50, 0.56, 0.50, 0.32),
    "kidney": (0.54, 0.62, 0.58, 0.60),
    "gas": (0.15, 0.05, 0.05, 0.04),
    "brain": (0.46, 0.48, 0.50, 0.50),
    "ventricle": (0.36, 0.30, 0.18, 0.85),
    "white matter": (0.44, 0.44, 0.60, 0.36),
}
# Share of the MRI images that are T2-weighted.
_T2_SHARE = 0.35

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
    "sinus",
    "skull",
    "spine",
    "stomach",
    "ventricle",
    "white matter",
)
"""Every part that an organ may have."""


@dataclass(frozen=True)
class Anatomy:
    """The drawing of an organ.

    Attributes:
        picture: float32 [S, S], brightness before exposure and noise, 0 black to 1 white.
        parts: bool [S, S] for each part by its name.
        host: name of the part that lesions lie in.
    """

    picture: np.ndarray
    parts: dict[str, np.ndarray]
    host: str


class _Sketch:
    """An unfinished picture. It paints parts and records their masks.

    Args:
        random: source of all random draws.
        size: side in pixels.
        modality: one of ``MODALITIES``.
    """

    def __init__(self, random: np.random.Generator, size: int, modality: str):
        self.random = random
        self.canvas = Canvas.bent(random, size)
        self.column = MODALITIES.index(modality)
        if modality == "MRI" and random.uniform() < _T2_SHARE:
            self.column += 1
        self.picture = np.full((size, size), self.brightness("background"), np.float32)
        self.parts: dict[str, np.ndarray] = {}

    def brightness(self, tissue: str) -> float:
        """Brightness of a tissue in this picture, 0..1."""
        return _TISSUE[tissue][self.column]

    def vary(self, value: float, share: float = 0.08) -> float:
        """The value, changed at random by at most a share of it."""
        return float(value * self.random.uniform(1 - share, 1 + share))

    def part(
        self, name: str, tissue: str, x: float, y: float, rx: float, ry: float, angle: float = 0.0, vary: float = 0.08
    ) -> None:
        """Paint an elliptic part; parts of the same name form one mask.

        Args:
            name: one of ``PARTS``.
            tissue: the tissue that decides its brightness.
            x: centre, 0..1 from left to right; a random shift is added.
            y: centre, 0..1 from top to bottom; a random shift is added.
            rx: half axis along x, as a share of the side.
            ry: half axis along y, as a share of the side.
            angle: rotation in radians.
            vary: largest random change of the half axes, as a share.
        """
        shift = self.random.uniform(-0.012, 0.012, 2)
        rx, ry = self.vary(rx, vary), self.vary(ry, vary)
        outline = self.canvas.ellipse(x + shift[0], y + shift[1], rx, ry, angle)
        outline.fill(self.picture, self.vary(self.brightness(tissue), 0.06))
        mask = outline.mask(self.canvas.size)
        self.parts[name] = self.parts[name] | mask if name in self.parts else mask

    def finish(self, host: str) -> Anatomy:
        """The finished drawing, with the part that lesions lie in."""
        return Anatomy(self.picture, self.parts, host)


def draw_chest(random: np.random.Generator, size: int, modality: str) -> Anatomy:
    """Draw a chest: a projection on a radiograph, an axial slice on CT and MRI.

    Args:
        random: source of all random draws.
        size: side in pixels.
        modality: one of ``MODALITIES``.
    """
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
    """Paint one rib on each side, at a height 0..1."""
    for x in (0.30, 0.70):
        outline = sketch.canvas.ellipse(x, y + 0.08, 0.19, 0.10)
        upper = sketch.canvas.y[outline.window] < y + 0.08
        sketch.picture[outline.window] += np.clip(1 - np.abs(outline.near) / 0.05, 0, 1) * upper * np.float32(0.10)


def draw_abdomen(random: np.random.Generator, size: int, modality: str) -> Anatomy:
    """Draw an axial slice of an abdomen; the arguments are those of ``draw_chest``."""
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
    """Draw an axial, coronal or sagittal slice of a brain; the arguments are those of ``draw_chest``."""
    sketch = _Sketch(random, size, modality)
    plane = (_axial_brain, _coronal_brain, _sagittal_brain)[int(random.choice(3, p=(0.5, 0.25, 0.25)))]
    plane(sketch)
    folds = np.clip(smooth_field(random, size, 30) - np.float32(0.3), 0, 1) * np.float32(random.uniform(0.05, 0.4))
    sketch.picture *= 1 - folds * sketch.parts["brain"]
    sketch.parts["brain"] &= ~sketch.parts["ventricle"]
    return sketch.finish("brain")


def _axial_brain(sketch: _Sketch) -> None:
    """Paint a slice across the body axis."""
    sketch.part("scalp", "fat", 0.5, 0.5, 0.375, 0.45, vary=0.04)
    sketch.part("skull", "bone", 0.5, 0.5, 0.355, 0.43, vary=0.02)
    sketch.part("brain", "brain", 0.5, 0.5, 0.32, 0.39, vary=0.02)
    for x, lean in ((0.40, 0.2), (0.60, -0.2)):
        sketch.part("white matter", "white matter", x, 0.5, 0.11, 0.24, lean)
    for x, lean in ((0.455, 0.25), (0.545, -0.25)):
        sketch.part("ventricle", "ventricle", x, 0.46, 0.025, 0.10, lean, vary=0.2)
    _fissure(sketch)


def _coronal_brain(sketch: _Sketch) -> None:
    """Paint a slice from ear to ear."""
    sketch.part("muscle", "soft tissue", 0.5, 0.85, 0.23, 0.28)
    sketch.part("scalp", "fat", 0.5, 0.44, 0.35, 0.385, vary=0.04)
    sketch.part("skull", "bone", 0.5, 0.44, 0.33, 0.365, vary=0.02)
    sketch.part("brain", "brain", 0.5, 0.43, 0.295, 0.325, vary=0.02)
    for x, lean in ((0.39, 0.5), (0.61, -0.5)):
        sketch.part("white matter", "white matter", x, 0.43, 0.09, 0.19, lean)
    for x, lean in ((0.465, -0.5), (0.535, 0.5)):
        sketch.part("ventricle", "ventricle", x, 0.37, 0.022, 0.06, lean, vary=0.2)
    for x in (0.43, 0.57):
        sketch.part("sinus", "gas", x, 0.86, 0.045, 0.06, vary=0.3)
    _fissure(sketch)


def _sagittal_brain(sketch: _Sketch) -> None:
    """Paint a slice from front to back."""
    front = -1 if sketch.random.uniform() < 0.5 else 1  # the side that the face is on
    sketch.part("muscle", "soft tissue", 0.5 + 0.24 * front, 0.72, 0.13, 0.26)
    sketch.part("muscle", "soft tissue", 0.5 - 0.08 * front, 0.90, 0.17, 0.26)
    sketch.part("scalp", "fat", 0.5, 0.41, 0.43, 0.36, vary=0.04)
    sketch.part("skull", "bone", 0.5, 0.41, 0.41, 0.34, vary=0.02)
    sketch.part("brain", "brain", 0.5, 0.40, 0.375, 0.30, vary=0.02)
    sketch.part("brain", "brain", 0.5 - 0.2 * front, 0.64, 0.12, 0.09)
    sketch.part("white matter", "white matter", 0.5 - 0.06 * front, 0.68, 0.045, 0.14, -0.3 * front)
    sketch.part("white matter", "white matter", 0.5, 0.40, 0.19, 0.09)
    sketch.part("ventricle", "ventricle", 0.5, 0.42, 0.10, 0.03, vary=0.25)
    sketch.part("sinus", "gas", 0.5 + 0.25 * front, 0.70, 0.05, 0.06, vary=0.3)


def _fissure(sketch: _Sketch) -> None:
    """Paint the dark line between the two halves of a brain."""
    middle = np.abs(sketch.canvas.x - 0.5) < 0.003
    sketch.picture[middle & sketch.parts["brain"]] *= 0.8


def draw_knee(random: np.random.Generator, size: int, modality: str) -> Anatomy:
    """Draw a coronal slice of a knee; the arguments are those of ``draw_chest``."""
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
"""The function that draws each organ."""
