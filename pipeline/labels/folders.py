"""Takes the class of each image from its folder, where there is no label file.

The first folder below the source names the class, however deep the image lies in it: ``class/patient/image.png``.
Folders such as ``train`` and ``test`` are splits, not classes: the first folder below them names the class.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from medfocus.pipeline.console.logs import event, log
from medfocus.pipeline.labels.reader import format_classes, normal_form, warn_of_like_classes

_TRAINING = frozenset({"train", "training"})
SPLITS = _TRAINING | {"val", "valid", "validation", "test", "testing"}


class FolderClasses(NamedTuple):
    """The classes that folders name.

    Args:
        classes: class of each image; None where it has none.
        splits: names of the folders that are splits.
        beside_splits: number of images that are not below a split.
        images: number of images of each name that was given.
    """

    classes: list[str | None]
    splits: list[str]
    beside_splits: int
    images: Sequence[int]

    def log(self) -> None:
        """Log the classes and the splits."""
        if self.splits:
            log.info(
                "folders %s are taken for splits, not for classes: the folder below names the class, the split is not"
                " kept",
                ", ".join(self.splits),
            )
        if self.beside_splits:
            log.warning("%d images lie beside the splits and have no class", self.beside_splits)
        classes: Counter[str] = Counter()
        for name, images in zip(self.classes, self.images, strict=True):
            classes.update({} if name is None else {name: images})
        event("classes named by folders:", classes=format_classes(classes))
        if len(classes) == 1:
            log.warning("all images with a class are of one class; if its folder is no class, give --labels")
        warn_of_like_classes(classes)


def folder_classes(names: Sequence[str], images: Sequence[int] | None = None) -> FolderClasses:
    """Take the class of each image from its folder.

    The folders of a level are splits on two conditions. All of them, or at least two, have names of splits, or one is
    ``train`` or ``training`` and holds folders only. And all images lie below the same folder above the level. An image
    beside the splits has no class.

    Args:
        names: path of each image below the source, with slashes; one of each folder suffices.
        images: number of images that each name stands for; None for one each.
    """
    images = [1] * len(names) if images is None else images
    # Keys of objects may have parts that name no folder.
    folders = [[part for part in name.split("/")[:-1] if part not in ("", ".", "..")] for name in names]
    above = _level_of_splits([parts for parts in folders if parts])
    if above is None:
        return FolderClasses([normal_form(parts[0]) if parts else None for parts in folders], [], 0, images)
    classes: list[str | None] = []
    splits = set()
    beside = 0
    for parts, count in zip(folders, images, strict=True):
        split = parts[above] if len(parts) > above else ""
        if split.casefold() in SPLITS:
            splits.add(split)
            classes.append(normal_form(parts[above + 1]) if len(parts) > above + 1 else None)
        else:
            beside += count
            classes.append(None)
    return FolderClasses(classes, sorted(splits), beside, images)


def _level_of_splits(folders: Sequence[Sequence[str]]) -> int | None:
    """Number of folders above the splits; None where there are no splits."""
    for level in range(max(map(len, folders), default=0)):
        here = {parts[level].casefold() for parts in folders if len(parts) > level}
        if here <= SPLITS or len(here & SPLITS) > 1 or _holds_classes(folders, level):
            return level
        if len(here) > 1 or any(len(parts) == level + 1 for parts in folders):
            return None  # below, not all images share the folder above
    return None


def _holds_classes(folders: Sequence[Sequence[str]], level: int) -> bool:
    """Whether a folder for training is at a level, and no image lies directly in it."""
    depths = {len(parts) - level for parts in folders if len(parts) > level and parts[level].casefold() in _TRAINING}
    return bool(depths) and min(depths) > 1
