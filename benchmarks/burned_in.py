"""How much burned-in text is found, and how many clean images are refused.

Usage: ``python -m benchmarks.burned_in [--images 150] [--photos FOLDER ...]``

Phantoms of 256, 512 and 1024 pixels are checked twice, as they are and with a name, a number or a date burned in. With
``--photos`` the same is done on the images of each folder. Those may bear text of their own, so that no target is set
for what is found there without an inscription.

Prints a table. The last lines say ``met`` or ``MISSED`` of the targets: at least 0.98 of the phantoms with text are
found, and at most 0.05 of the others. The exit code is 1 where one is missed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset

from benchmarks.inscriptions import BITMAP_SIZE, CONTRASTS, FONTS, SIZES, Inscription, burn, inscribe
from medfocus.stages.burned_in import BurnedInText, is_installed
from medfocus.stages.burned_in_settings import BurnedInSettings
from medfocus.starter.phantoms import PRESETS, draw

SEED, IMAGES = 19, 150
SIDES = (256, 512, 1024)
RECALL, FALSE_ALARMS = 0.98, 0.05
NOT_INSTALLED = "n/a, install with pip install 'medfocus[ocr]'"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Trial:
    """One image, checked without an inscription and with one.

    Attributes:
        side: shorter side of the image in pixels.
        inscription: what was burned in.
        found: whether it was found.
        alarm: whether text was found without it.
    """

    side: int
    inscription: Inscription
    found: bool
    alarm: bool


def phantoms(count: int) -> Iterator[np.ndarray]:
    """Phantoms uint8 [H, W], small and large ones in turn, without patients' text but some with a marker."""
    for index in range(count):
        yield draw(index, seed=SEED, preset=PRESETS[index % 2], size=SIDES[index % len(SIDES)]).image


def photos(folder: Path, count: int) -> Iterator[np.ndarray]:
    """The first images below a folder, uint8 [H, W], spread over it."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    for path in files[:: max(1, len(files) // count)][:count]:
        yield np.asarray(Image.open(path).convert("L"))


def try_out(images: Iterable[np.ndarray], text: BurnedInText) -> tuple[list[Trial], float]:
    """Check each image twice; returns the trials, and seconds of CPU time for one check."""
    header = Dataset()
    header.SOPClassUID = _SECONDARY_CAPTURE
    trials, seconds = [], 0.0
    for index, image in enumerate(images):
        inscription = inscribe(np.random.default_rng([SEED, index]), index)
        began = time.process_time()
        found, alarm = (
            text.check(pixels, header).action == "quarantine" for pixels in (burn(image, inscription)[0], image)
        )
        seconds += time.process_time() - began
        trials.append(Trial(min(image.shape), inscription, found, alarm))
    return trials, seconds / max(1, 2 * len(trials))


def rows(name: str, trials: list[Trial]) -> Iterator[str]:
    """The rows of a set of images: all of it, and its parts by what was varied."""
    parts: dict[str, tuple[Iterable[object], Callable[[Trial], object]]] = {
        "image of {} px": (sorted({trial.side for trial in trials} & set(SIDES)), lambda trial: trial.side),
        "font of {} px": (sorted({*SIZES, BITMAP_SIZE}), lambda trial: trial.inscription.size),
        "contrast {}": (CONTRASTS, lambda trial: trial.inscription.contrast),
        "{}": (FONTS, lambda trial: trial.inscription.font),
        "a {}": (("name", "number", "date"), lambda trial: trial.inscription.kind),
        "turned: {}": ((False, True), lambda trial: trial.inscription.turned),
    }
    yield _row(name, trials)
    for label, (values, value_of) in parts.items():
        for value in values:
            if of := [trial for trial in trials if value_of(trial) == value]:
                yield _row(f"{name}, {label.format(value)}", of)


def _row(name: str, trials: list[Trial]) -> str:
    return f"| {name} | {len(trials)} | {_share_found(trials):.3f} | {_share_of_alarms(trials):.3f} |"


def judge(trials: list[Trial]) -> list[str]:
    """A line for each target, with ``met`` or ``MISSED``."""
    checks = {
        f"at least {RECALL} of the phantoms with text are found": _share_found(trials) >= RECALL,
        f"at most {FALSE_ALARMS} of the others": _share_of_alarms(trials) <= FALSE_ALARMS,
    }
    return [f"{target}: {'met' if met else 'MISSED'}" for target, met in checks.items()]


def _share_found(trials: list[Trial]) -> float:
    return sum(trial.found for trial in trials) / len(trials)


def _share_of_alarms(trials: list[Trial]) -> float:
    return sum(trial.alarm for trial in trials) / len(trials)


def main() -> int:
    """Print the table; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.burned_in",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=IMAGES, help=f"number of each set (default: {IMAGES})")
    parser.add_argument("--photos", type=Path, nargs="+", default=[], help="folders of PNG and JPEG files")
    call = parser.parse_args()
    print("| images | number | text found | alarms without it |")
    print("|---|---|---|---|")
    if not is_installed():
        print(f"| phantoms | {call.images} | {NOT_INSTALLED} | |")
        return 0
    text, judged = BurnedInText(BurnedInSettings()), []
    sets = {"phantoms": phantoms(call.images)} | {folder.name: photos(folder, call.images) for folder in call.photos}
    for name, images in sets.items():
        trials, seconds = try_out(images, text)
        print("\n".join(rows(name, trials)))
        print(f"| {name}: {seconds:.2f} s of CPU time a check | | | |", flush=True)
        judged += judge(trials) if name == "phantoms" else []
    print("\n" + "\n".join(judged))
    return int(any("MISSED" in line for line in judged))


if __name__ == "__main__":
    sys.exit(main())
