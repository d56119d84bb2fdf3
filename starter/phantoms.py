"""Phantoms: grey images with anatomy, lesions whose kind is the class, and the truth about both.

``python -m medfocus.starter.phantoms FOLDER`` writes a labelled set. Nothing here is a patient, and nothing learned
from it is for clinical use.
"""

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from medfocus.starter.anatomy import MODALITIES, ORGANS, Anatomy
from medfocus.starter.canvas import smooth_field
from medfocus.starter.lesions import CLASSES, draw_lesion
from medfocus.starter.machines import SITES, expose

Preset = Literal["easy", "hard"]
PRESETS = ("easy", "hard")
IMAGES_PER_PATIENT = 4
# Share of the image that one lesion covers, about; log-uniform between the two.
_LESION_AREA = {"easy": (0.01, 0.05), "hard": (0.005, 0.01)}
_DECOY_AREA = (0.025, 0.07)
_MOST_LESIONS = 3
_KIND_WORDS = {
    "solid mass": ("a solid mass", "a smooth round mass", "a well defined nodule", "a homogeneous bright mass"),
    "ring lesion": ("a ring lesion", "a ring enhancing lesion", "a mass with a bright rim", "a rim around a dark core"),
    "spiculated mass": ("a spiculated mass", "a star shaped mass", "a mass with spikes", "an irregular spiky lesion"),
    "calcification cluster": (
        "a calcification cluster",
        "a cluster of calcifications",
        "many small bright grains",
        "grouped bright specks",
    ),
}
MODALITY_WORDS = {
    "radiograph": ("radiograph", "x-ray", "plain film"),
    "CT": ("CT scan", "computed tomography slice", "CT image"),
    "MRI": ("MRI scan", "magnetic resonance image", "MR slice"),
}


@dataclass(frozen=True)
class Phantom:
    """One phantom and the truth about it.

    ``image`` is uint8 [S, S]; ``lesions`` bool [n, S, S], one mask a lesion; ``decoys`` the same of what only looks
    like one; ``anatomy`` bool [S, S] by the name of the part; ``label`` one of ``CLASSES``, or ``no lesion``.
    """

    image: np.ndarray
    lesions: np.ndarray
    decoys: np.ndarray
    anatomy: dict[str, np.ndarray]
    label: str
    modality: str
    organ: str
    site: str
    patient: str
    caption: str


def draw(
    index: int,
    *,
    seed: int = 0,
    preset: str = "easy",
    size: int = 256,
    healthy: float = 0.0,
    decoys: bool = True,
) -> Phantom:
    """Draw the phantom of an index; the same call gives the same phantom, in any order.

    Organ, modality and site are uniform. Classes take turns, so that any run of four indices has one of each. An
    image that is not healthy has one to three lesions of its class, uniformly, fewer where they find no room; each is
    about as likely at any place of the organ that hosts lesions, covers a share of the image that is log-uniform (1 to
    5 %; hard: 0.5 to 1 %), and has a margin of 0.6 to 1.8 times the usual width of its kind.

    Args:
        index: 0 or more. Four indices in a row are images of one patient.
        seed: of the whole set.
        preset: ``easy``, or ``hard``: lesions of 0.5 to 3 % of the image in all, and three to five larger decoys that
            look like lesions of another class, outside of the body, where no lesion can be.
        size: side in pixels, 32 or more.
        healthy: share of images without a lesion, with the label ``no lesion``.
        decoys: whether the preset's decoys are drawn.

    Raises:
        ValueError: a value is out of its range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; use one of {', '.join(PRESETS)}")
    if size < 32 or index < 0:
        raise ValueError(f"size {size} and index {index}: size must be 32 or more, index 0 or more")
    random = np.random.default_rng([seed, index, PRESETS.index(preset)])
    patient = index // IMAGES_PER_PATIENT
    site = int(np.random.default_rng([seed, patient]).integers(len(SITES)))
    organ = list(ORGANS)[int(random.integers(len(ORGANS)))]
    modality = MODALITIES[int(random.integers(len(MODALITIES)))]
    label = "no lesion" if random.uniform() < healthy else CLASSES[index % len(CLASSES)]
    anatomy = ORGANS[organ](random, size, modality)
    picture = anatomy.picture
    picture += 0.025 * smooth_field(random, size, 24)
    lesions = misleading = np.zeros((0, size, size), bool)
    if label != "no lesion":
        lesions = _draw_lesions(random, anatomy, label, preset)
    if preset == "hard" and decoys:
        misleading = _draw_decoys(random, anatomy, label)
    image = expose(random, picture, modality, site)
    caption = _caption(random, modality, organ, label)
    return Phantom(
        image=_burn_in(random, image),
        lesions=lesions,
        decoys=misleading,
        anatomy=anatomy.parts,
        label=label,
        modality=modality,
        organ=organ,
        site=SITES[site],
        patient=f"P{patient:05d}",
        caption=caption,
    )


def _draw_lesions(random: np.random.Generator, anatomy: Anatomy, kind: str, preset: str) -> np.ndarray:
    """Paint lesions of one kind into the host organ, apart from each other; masks [n, S, S], n at least 1."""
    low, high = np.log(_LESION_AREA[preset])
    masks: list[np.ndarray] = []
    for _ in range(int(random.integers(1, _MOST_LESIONS + 1))):
        area = float(np.exp(random.uniform(low, high)))
        free = anatomy.parts[anatomy.host] & _inner(anatomy.picture.shape[0], np.sqrt(area / np.pi))
        for mask in masks:
            free = free & ~_near(mask, area)
        places = np.flatnonzero(free)
        if not len(places):
            break
        masks.append(draw_lesion(random, anatomy.picture, kind, _pick(random, places, free.shape[0]), area))
    return np.stack(masks)


def _inner(size: int, border: float) -> np.ndarray:
    """True but for a border of a share of the image: what sits inside is not cut off."""
    inner = np.zeros((size, size), bool)
    edge = int(np.ceil(border * size))
    inner[edge : size - edge, edge : size - edge] = True
    return inner


def _near(mask: np.ndarray, area: float) -> np.ndarray:
    """The bounding box of a mask, grown by the size of another lesion."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    grown = int(np.ceil(1.6 * np.sqrt(area / np.pi) * mask.shape[0]))
    box = np.zeros_like(mask)
    box[max(0, rows[0] - grown) : rows[-1] + grown + 1, max(0, columns[0] - grown) : columns[-1] + grown + 1] = True
    return box


def _pick(random: np.random.Generator, places: np.ndarray, size: int) -> tuple[float, float]:
    row, column = divmod(int(places[random.integers(len(places))]), size)
    return (column + 0.5) / size, (row + 0.5) / size


def _draw_decoys(random: np.random.Generator, anatomy: Anatomy, label: str) -> np.ndarray:
    """Paint marks like lesions of another class where no lesion can be, outside of what is drawn; masks [n, S, S]."""
    size = anatomy.picture.shape[0]
    outside = _inner(size, 1 / 12)
    for mask in anatomy.parts.values():
        outside &= ~mask
    places = np.flatnonzero(outside)
    others = [kind for kind in CLASSES if kind != label]
    kind = others[int(random.integers(len(others)))]
    masks = [np.zeros((0, size, size), bool)]
    for _ in range(int(random.integers(3, 6)) if len(places) else 0):
        area = float(np.exp(random.uniform(*np.log(_DECOY_AREA))))
        masks.append(draw_lesion(random, anatomy.picture, kind, _pick(random, places, size), area)[None])
    return np.concatenate(masks)


def _burn_in(random: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Markers and borders that machines and people leave; they tell nothing of the class."""
    size = image.shape[0]
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    if random.uniform() < 0.5:
        corner = (size * random.choice([0.02, 0.86]), size * random.choice([0.02, 0.9]))
        pen.text(corner, str(random.choice(["L", "R", "PA", "SUP"])), fill=230)
    if random.uniform() < 0.2:
        pen.rectangle((0, 0, size - 1, size - 1), outline=int(random.integers(90, 200)), width=max(1, size // 128))
    if random.uniform() < 0.2:  # a tube
        points = [(size * random.uniform(0.3, 0.7), size * step / 5) for step in range(6)]
        pen.line(points, fill=int(random.integers(150, 220)), width=max(1, size // 128), joint="curve")
    return np.array(picture)


def _caption(random: np.random.Generator, modality: str, organ: str, label: str) -> str:
    how = MODALITY_WORDS[modality][int(random.integers(len(MODALITY_WORDS[modality])))]
    if label == "no lesion":
        what = ("no lesion", "normal findings", "nothing abnormal")[int(random.integers(3))]
    else:
        what = _KIND_WORDS[label][int(random.integers(len(_KIND_WORDS[label])))]
    forms = (
        "a {organ} {how} showing {what}",
        "a {how} of the {organ} with {what}",
        "{what} on a {organ} {how}",
        "a picture showing {what}",
        "{what}",
    )
    return forms[int(random.integers(len(forms)))].format(organ=organ, how=how, what=what)


def write_set(folder: Path, count: int, *, seed: int, preset: str, size: int, start: int = 0) -> None:
    """Write phantoms ``start`` to ``start + count - 1`` as ``images/*.png`` and ``masks/*.png``, and ``labels.csv``."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "patient_id", "site"])
        for index in range(start, start + count):
            phantom = draw(index, seed=seed, preset=preset, size=size)
            name = f"{index:06d}.png"
            Image.fromarray(phantom.image).save(folder / "images" / name)
            Image.fromarray(phantom.lesions.any(0).astype(np.uint8) * 255).save(folder / "masks" / name)
            table.writerow([name, phantom.label, phantom.patient, phantom.site])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m medfocus.starter.phantoms", description=__doc__)
    parser.add_argument("folder", type=Path, help="where images/, masks/ and labels.csv are written")
    parser.add_argument("--count", type=int, default=400, help="number of phantoms (default: 400)")
    parser.add_argument("--start", type=int, default=0, help="index of the first; sets that do not overlap share none")
    parser.add_argument("--preset", choices=PRESETS, default="easy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default: 256)")
    call = parser.parse_args()
    write_set(call.folder, call.count, seed=call.seed, preset=call.preset, size=call.size, start=call.start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
