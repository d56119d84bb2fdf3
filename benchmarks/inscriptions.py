"""Text that is burned into images, as scanners and film printers do: names, numbers and dates of nobody."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

BITMAP_SIZE = 11
"""Height in pixels of the font that has no other."""
SIZES = (8, 10, 12, 16, 20, 28, 40)
"""Heights of the fonts in pixels; a capital letter has about 0.7 of it."""
CONTRASTS = (60, 100, 160, 255)
"""Differences in grey levels from the mean of what lies behind the text; they end at black or white."""
_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "STIXGeneral.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
FONTS = ("Pillow", "Pillow bitmap", *_FILES)
"""Two fonts that Pillow has, of which the second has one size, and some that matplotlib has."""
_FAMILY = ("SMITH", "GARCIA", "NGUYEN", "KOWALSKI", "Okafor", "Lindqvist", "Yamada", "Haddad", "OBrien", "de Vries")
_GIVEN = ("JOHN", "MARIA", "LAN", "Piotr", "Adaeze", "Elin", "KENJI", "Rania", "S.", "Anneke")


@dataclass(frozen=True)
class Inscription:
    """A text and how it is drawn.

    Attributes:
        text: what is written.
        kind: ``name``, ``number`` or ``date``.
        font: one of ``FONTS``.
        size: height of the font in pixels.
        contrast: difference in grey levels from the mean of what lies behind.
        light: whether it is lighter than what lies behind, if there is room.
        turned: whether it runs upwards.
        place: of its top left corner, 0..1 of the room that there is, down and across.
    """

    text: str
    kind: str
    font: str
    size: int
    contrast: int
    light: bool
    turned: bool
    place: tuple[float, float]


def inscribe(random: np.random.Generator, index: int) -> Inscription:
    """The inscription of an index: fonts, sizes and contrasts follow in turn, the rest is random.

    Half of the inscriptions are along an edge, where scanners write; one of five is turned.
    """
    font = FONTS[index % len(FONTS)]
    place = [float(random.uniform()), float(random.uniform())]
    if random.uniform() < 0.5:
        place[int(random.integers(2))] = float(random.choice([0.01, 0.99]))
    text, kind = _text(random)
    return Inscription(
        text=text,
        kind=kind,
        font=font,
        size=BITMAP_SIZE if font == "Pillow bitmap" else SIZES[index % len(SIZES)],
        contrast=CONTRASTS[index // len(SIZES) % len(CONTRASTS)],
        light=bool(random.uniform() < 0.7),
        turned=bool(random.uniform() < 0.2),
        place=(place[0], place[1]),
    )


def burn(image: np.ndarray, inscription: Inscription) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draw an inscription.

    Args:
        image: uint8 [H, W].
        inscription: what is drawn; it is cut off where the image is too small.

    Returns:
        A copy of the image, and the box of the text: top, left, bottom, right.
    """
    ink = _ink(inscription)[: image.shape[0], : image.shape[1]]
    height, width = ink.shape
    top = round(inscription.place[0] * (image.shape[0] - height))
    left = round(inscription.place[1] * (image.shape[1] - width))
    box = (slice(top, top + height), slice(left, left + width))
    behind = image[box].astype(float)
    level, step = behind.mean(), inscription.contrast
    lighter = inscription.light if 0 <= level + (step if inscription.light else -step) <= 255 else level < 128
    colour = np.clip(level + (step if lighter else -step), 0, 255)
    out = image.copy()
    out[box] = np.round(behind + (colour - behind) * ink / 255).astype(np.uint8)
    return out, (top, left, top + height, left + width)


def _ink(inscription: Inscription) -> np.ndarray:
    """Opacity of the text, uint8 [H, W], without a border."""
    font = _font(inscription.font, inscription.size)
    left, top, right, bottom = font.getbbox(inscription.text)
    canvas = Image.new("L", (int(np.ceil(right - left)), int(np.ceil(bottom - top))))
    ImageDraw.Draw(canvas).text((-left, -top), inscription.text, fill=255, font=font)
    ink = np.asarray(canvas)
    return np.rot90(ink) if inscription.turned else ink


def _font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if name == "Pillow bitmap":
        return ImageFont.load_default_imagefont()
    if name == "Pillow":
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _text(random: np.random.Generator) -> tuple[str, str]:
    """A text and its kind."""
    family, given = str(random.choice(_FAMILY)), str(random.choice(_GIVEN))
    day, month, year = int(random.integers(1, 29)), int(random.integers(1, 13)), int(random.integers(1930, 2026))
    number = int(random.integers(10**5, 10**8))
    names = (f"{family} {given}", f"{family}, {given}", family, f"{given} {family}", f"Pat: {family} {given}")
    numbers = (
        f"ID {number}",
        f"MRN:{number}",
        str(number),
        f"ACC {number % 10000}-{number % 997}",
        f"A{number % 10**6}",
    )
    dates = (
        f"{year}-{month:02}-{day:02}",
        f"{day:02}.{month:02}.{year}",
        f"{month}/{day}/{year}",
        f"DOB {year}{month:02}{day:02}",
    )
    kind = ("name", "number", "date")[int(random.integers(3))]
    choices = {"name": names, "number": numbers, "date": dates}[kind]
    return choices[int(random.integers(len(choices)))], kind
