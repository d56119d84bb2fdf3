import logging

import pytest

from medfocus.pipeline.labels.folders import folder_classes


@pytest.mark.parametrize(
    ("names", "classes", "splits"),
    [
        (["cat/1.png", "dog/2.png", "3.png"], ["cat", "dog", None], []),
        (["cat/patient 1/1.png", "dog/patient 2/series/2.png"], ["cat", "dog"], []),
        (["train/cat/1.png", "val/dog/2.png", "Test/cat/3.png"], ["cat", "dog", "cat"], ["Test", "train", "val"]),
        (["Training/cat/p1/1.png", "Testing/dog/p2/2.png"], ["cat", "dog"], ["Testing", "Training"]),
        (["archive/train/cat/1.png", "archive/valid/dog/2.png"], ["cat", "dog"], ["train", "valid"]),
        (["x/y/validation/cat/1.png", "x/y/training/dog/2.png"], ["cat", "dog"], ["training", "validation"]),
        (["train/1.png", "train/2.png"], [None, None], ["train"]),
        (["test/1.png", "3.png"], [None, None], ["test"]),
        (["train/cat/1.png", "train/2.png", "3.png"], ["cat", None, None], ["train"]),
        (["train/cat/1.png", "more/dog/2.png"], ["cat", None], ["train"]),
        (["test/1.png", "control/2.png"], ["test", "control"], []),  # groups of a study
        (["valid/1.png", "invalid/2.png"], ["valid", "invalid"], []),
        (["car/1.png", "train/2.png"], ["car", "train"], []),
        (["cat/train/p1/1.png", "dog/test/p2/2.png"], ["cat", "dog"], []),
        (["cat /1.png", "cat/2.png", "cafe\u0301/3.png", "caf\u00e9/4.png"], ["cat", "cat", "café", "café"], []),
        ([], [], []),
    ],
)
def test_folders_name_classes(names: list[str], classes: list[str | None], splits: list[str]) -> None:
    found = folder_classes(names)
    assert (found.classes, found.splits) == (classes, splits)


def test_what_was_taken_for_what_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder_classes(["train/cat/1.png", "val/Cat/2.png", "more/dog/3.png", "4.png"]).log()
    assert "folders train, val are taken for splits" in caplog.text
    assert "2 images lie beside the splits" in caplog.text
    assert "classes 'Cat' and 'cat' look alike" in caplog.text
    caplog.clear()
    folder_classes(["images/1.png", "images/2.png"]).log()
    assert "of one class" in caplog.text
