"""Phantoms: grey images of drawn anatomy with lesions, and the truth about both. The kind of lesion is the class.

``python -m medfocus.starter.phantoms FOLDER`` writes a labelled set. No phantom shows a patient, and a model that
learns from phantoms is not for clinical use.
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
"""The presets of difficulty (``draw``)."""
IMAGES_PER_PATIENT = 4
"""Images of one patient; their indices follow each other."""
# Bounds of the approximate share of the image that one lesion covers; the share is log-uniform.
_LESION_AREA = {"easy": (0.01, 0.05), "hard": (0.005, 0.01)}
# The same of one decoy.
_DECOY_AREA = (0.025, 0.07)
_MOST_LESIONS = 3
# Words of a caption for each kind of lesion.
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
"""Words of a caption for each modality."""


@dataclass(frozen=True)
class Phantom:
    """One phantom and the truth about it.

    Attributes:
        image: uint8 [S, S].
        lesions: bool [n, S, S], a mask for each lesion.
        decoys: bool [n, S, S], a mask for each mark that only looks like a lesion.
        anatomy: bool [S, S] for each part of the organ by its name.
        label: one of ``CLASSES``, or ``no lesion``.
        modality: one of ``MODALITIES``.
        organ: one of ``ORGANS``.
        site: one of ``SITES``; all images of a patient are from one site.
        patient: pseudonym of the patient.
        caption: a sentence about the image.
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
    """Draw the phantom of an index. The same call gives the same phantom, whatever was drawn before.

    Organ, modality and site are uniform. The classes alternate, so that four indices in a row have one of each. An
    image that is not healthy has one to three lesions of its class, uniformly, or fewer where there is no room. A
    lesion lies at a random place of the part that hosts lesions, and covers a log-uniform share of the image (1 to 5 %;
    ``hard``: 0.5 to 1 %). Its margin is 0.6 to 1.8 times the usual width of its kind.

    Args:
        index: 0 or more. Four indices in a row are images of one patient.
        seed: seed of the whole set.
        preset: ``easy`` or ``hard``. A ``hard`` image has lesions of 0.5 to 3 % of the image in total, and three to
            five larger decoys. A decoy looks like a lesion of another class and lies outside the body.
        size: side in pixels, 32 or more.
        healthy: share of images without a lesion, whose label is ``no lesion``.
        decoys: whether to draw the decoys of the preset.

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
    lesions = decoy_masks = np.zeros((0, size, size), bool)
    if label != "no lesion":
        lesions = _draw_lesions(random, anatomy, label, preset)
    if preset == "hard" and decoys:
        decoy_masks = _draw_decoys(random, anatomy, label)
    image = expose(random, picture, modality, site)
    caption = _caption(random, modality, organ, label)
    return Phantom(
        image=_burn_in(random, image),
        lesions=lesions,
        decoys=decoy_masks,
        anatomy=anatomy.parts,
        label=label,
        modality=modality,
        organ=organ,
        site=SITES[site],
        patient=f"P{patient:05d}",
        caption=caption,
    )


def _draw_lesions(random: np.random.Generator, anatomy: Anatomy, kind: str, preset: str) -> np.ndarray:
    """Paint separate lesions of one kind into the part that hosts them; returns masks [n, S, S], n at least 1."""
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
    """A mask bool [size, size] that excludes a border, a share of the side, in which a lesion would be cut off."""
    inner = np.zeros((size, size), bool)
    edge = int(np.ceil(border * size))
    inner[edge : size - edge, edge : size - edge] = True
    return inner


def _near(mask: np.ndarray, area: float) -> np.ndarray:
    """The bounding box of a mask, extended by the size of another lesion of the given area."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    grown = int(np.ceil(1.6 * np.sqrt(area / np.pi) * mask.shape[0]))
    box = np.zeros_like(mask)
    box[max(0, rows[0] - grown) : rows[-1] + grown + 1, max(0, columns[0] - grown) : columns[-1] + grown + 1] = True
    return box


def _pick(random: np.random.Generator, places: np.ndarray, size: int) -> tuple[float, float]:
    """Coordinates x and y, 0..1, of one of some pixels, given as flat indices."""
    row, column = divmod(int(places[random.integers(len(places))]), size)
    return (column + 0.5) / size, (row + 0.5) / size


def _draw_decoys(random: np.random.Generator, anatomy: Anatomy, label: str) -> np.ndarray:
    """Paint marks that look like lesions of another class, outside the anatomy; returns masks [n, S, S]."""
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
    """Draw the markers, borders and tubes that machines and people add; they do not depend on the class."""
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
    """A random sentence about an image."""
    image = MODALITY_WORDS[modality][int(random.integers(len(MODALITY_WORDS[modality])))]
    if label == "no lesion":
        finding = ("no lesion", "normal findings", "nothing abnormal")[int(random.integers(3))]
    else:
        finding = _KIND_WORDS[label][int(random.integers(len(_KIND_WORDS[label])))]
    forms = (
        "a {organ} {image} showing {finding}",
        "a {image} of the {organ} with {finding}",
        "{finding} on a {organ} {image}",
        "a picture showing {finding}",
        "{finding}",
    )
    return forms[int(random.integers(len(forms)))].format(organ=organ, image=image, finding=finding)


def write_set(folder: Path, count: int, *, seed: int, preset: str, size: int, start: int = 0) -> None:
    """Write phantoms as ``images/*.png``, their lesions as ``masks/*.png``, and ``labels.csv``.

    Args:
        folder: the folder that is written.
        count: number of phantoms.
        seed: as for ``draw``.
        preset: as for ``draw``.
        size: as for ``draw``.
        start: index of the first phantom.
    """
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
    """Write the set that the command line describes."""
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
