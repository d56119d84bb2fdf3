"""Maps the classes that label files have to those that are learned: ``mal`` to ``malignant``, or to none."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.reader import LabelFile, format_list, normal_form
from medfocus.pipeline.yaml_text import NullText, parse_mapping

# Most letters of a class in a message: a wrong column may hold anything.
_MOST_LETTERS = 40


class ClassMapping:
    """A mapping of classes; a class that it does not name stays as it is.

    Args:
        classes: class by the class of a label file, both in normal form; None drops the label.
    """

    def __init__(self, classes: Mapping[str, str | None]):
        self.classes = classes

    def __call__(self, label: str | None) -> str | None:
        """The class that a label means; None where there is no label, or it is dropped."""
        return label if label is None else self.classes.get(label, label)

    def apply(self, labels: LabelFile) -> LabelFile:
        """A label file with mapped classes."""
        return replace(labels, rows=[row._replace(label=self(row.label)) for row in labels.rows])

    def log(self, labels: Iterable[str | None]) -> None:
        """Log what the mapping does to the labels of all label files, and each doubt in one line.

        Args:
            labels: labels in normal form before they are mapped.
        """
        rows = Counter(label for label in labels if label is not None)
        if not self.classes:
            return
        log.info("labels mapped: %d rows to another class, %d to none", *self._changes(rows))
        targets = {label for label in self.classes.values() if label is not None}
        for names, text in (
            (rows.keys() - self.classes.keys() - targets, "classes that labels.mapping does not name stay: %s"),
            (self.classes.keys() - rows.keys(), "classes of labels.mapping that no row has: %s"),
        ):
            if names:
                log.warning(text, format_list([repr(name[:_MOST_LETTERS]) for name in sorted(names)]))

    def _changes(self, rows: Counter[str]) -> tuple[int, int]:
        dropped = sum(count for label, count in rows.items() if self(label) is None)
        return sum(count for label, count in rows.items() if self(label) != label) - dropped, dropped


def read_class_mapping(location: Location) -> ClassMapping:
    """Read a mapping of classes: YAML with a line for each spelling of the label files.

    Args:
        location: the file.

    Raises:
        UsageError: there is no such file, it is not such a mapping, or names one class twice with different values.
    """
    name = f"labels.mapping {location.uri}"
    if not location.exists() or location.is_folder():
        raise UsageError(f"{name}: no such file; give the path of a YAML file")
    classes: dict[str, str | None] = {}
    for spelling, value in parse_mapping(location.read(), name, "a class for each label").items():
        if not isinstance(spelling, str) or not isinstance(value, str):
            raise UsageError(f"{name}: expected one class or null for each label, found {type(value).__name__}")
        label = normal_form(spelling)
        target = None if isinstance(value, NullText) else normal_form(value)
        if classes.setdefault(label, target) != target:
            raise UsageError(f"{name}: maps {label[:_MOST_LETTERS]!r} to two classes; keep one of them")
    return ClassMapping(classes)
