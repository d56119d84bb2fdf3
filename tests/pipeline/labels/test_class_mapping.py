"""A YAML file that maps the classes of label files."""

import logging
from pathlib import Path

import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.class_mapping import ClassMapping, read_class_mapping
from medfocus.pipeline.labels.reader import read_labels


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "classes.yaml"


def read(file: Path, text: str) -> ClassMapping:
    file.write_text(text)
    return read_class_mapping(locate(str(file), StorageSection()))


def test_labels_are_trimmed_and_mapped(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mapping = read(
        file, 'mal: malignant\n"Malignant ": malignant\nno: benign\n1: benign\n?: null\nunclear: null\nold: x\n'
    )
    (tmp_path / "labels.csv").write_text(
        "file,label\na,mal\nb, Malignant\nc,no\nd,1.0\ne,unclear\nf,benign\ng,cyst\nh,\n"
    )
    labels = read_labels(locate(str(tmp_path / "labels.csv"), StorageSection()))
    mapped = mapping.apply(labels)
    classes = ["malignant", "malignant", "benign", "benign", None, "benign", "cyst", None]
    assert [row.label for row in mapped.rows] == classes
    with caplog.at_level(logging.INFO):
        mapping.log(row.label for row in labels.rows)
    assert [record.getMessage() for record in caplog.records] == [
        "labels mapped: 4 rows to another class, 1 to none",
        "classes that labels.mapping does not name stay: 'cyst'",
        "classes of labels.mapping that no row has: '?', 'old'",
    ]


def test_without_a_mapping_nothing_changes_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    mapping = ClassMapping({})
    with caplog.at_level(logging.INFO):
        mapping.log(["a", None])
    assert mapping("a") == "a" and mapping(None) is None and not caplog.records


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- mal\n- ben\n", "expected a class for each label, found list"),
        ("mal: [a, b]\n", "expected one class or null for each label, found list"),
        ('mal: a\n"mal ": b\n', "maps 'mal' to two classes"),
        ("mal: {\n", "not YAML in line"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_clear_line(file: Path, text: str | None, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(file, text) if text else read_class_mapping(locate(str(file), StorageSection()))
    message = str(caught.value)
    assert message.startswith(f"labels.mapping {file}: ") and expected in message and "\n" not in message
