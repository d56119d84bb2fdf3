"""Devices that fail in a worker process, as a GPU does: the process cannot use them from then on."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medfocus.pipeline.commands import pack
from tests.faults.injection import NO_DIFFERENCE, ScoreCommand, compare_output

pytestmark = pytest.mark.faults


def test_no_row_is_lost_when_a_device_fails_once(
    archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand, tmp_path: Path
) -> None:
    command.environment["FAULT_DEVICE"] = f"once:{tmp_path / 'failed'}"
    result = command.finish()
    assert (tmp_path / "failed").exists()
    assert (result["scored"], result["quarantined"]) == (len(archive.images), 0)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE


def test_only_the_image_that_breaks_every_device_is_quarantined(
    archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(archive.root / "images", folder)
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "white.png")
    pack.run(archive.config, str(folder), str(tmp_path / "shards"), None)
    command.shards = str(tmp_path / "shards")
    command.environment["FAULT_DEVICE"] = "white"
    result = command.finish()
    assert (result["scored"], result["quarantined"]) == (len(archive.images), 1)
    assert [(row["image_id"], row["error"]) for row in command.rows("quarantine")] == [("white.png", "WorkerDied")]
    assert compare_output(command, archive.images | {"white.png"}, undisturbed) == NO_DIFFERENCE


@pytest.mark.long
def test_a_permanently_broken_device_ends_the_run_without_a_row(
    archive: SimpleNamespace, command: ScoreCommand
) -> None:
    command.environment["FAULT_DEVICE"] = "always"
    lines = command.finish(code=1)["stderr"].strip().splitlines()
    assert "its device fails in a new process, too" in lines[-1] and "CUDA error: device-side assert" in lines[-1]
    assert "Traceback" not in "".join(lines) and not command.rows("quarantine") and not command.rows("predictions")
