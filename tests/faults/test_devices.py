"""Devices that fail inside of a worker, as a GPU does: the process is of no use from then on."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medfocus.pipeline.commands import pack
from tests.faults.injection import ALL_WELL, Scoring, account

pytestmark = pytest.mark.faults


def test_a_device_that_fails_once_costs_no_row(
    archive: SimpleNamespace, undisturbed: dict, scoring: Scoring, tmp_path: Path
) -> None:
    scoring.environment["FAULT_DEVICE"] = f"once:{tmp_path / 'failed'}"
    result = scoring.finish()
    assert (tmp_path / "failed").exists()
    assert (result["scored"], result["quarantined"]) == (len(archive.images), 0)
    assert account(scoring, archive.images, undisturbed) == ALL_WELL


def test_an_image_that_breaks_every_device_costs_itself(
    archive: SimpleNamespace, undisturbed: dict, scoring: Scoring, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(archive.root / "images", folder)
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "white.png")
    pack.run(archive.config, str(folder), str(tmp_path / "shards"), None)
    scoring.shards = str(tmp_path / "shards")
    scoring.environment["FAULT_DEVICE"] = "white"
    result = scoring.finish()
    assert (result["scored"], result["quarantined"]) == (len(archive.images), 1)
    assert [(row["image_id"], row["error"]) for row in scoring.rows("quarantine")] == [("white.png", "WorkerDied")]
    assert account(scoring, archive.images | {"white.png"}, undisturbed) == ALL_WELL


@pytest.mark.long
def test_a_device_that_is_broken_for_good_ends_the_run_and_no_row(archive: SimpleNamespace, scoring: Scoring) -> None:
    scoring.environment["FAULT_DEVICE"] = "always"
    told = scoring.finish(code=1)["stderr"].strip().splitlines()
    assert "its device fails in a new process, too" in told[-1] and "CUDA error: device-side assert" in told[-1]
    assert "Traceback" not in "".join(told) and not scoring.rows("quarantine") and not scoring.rows("predictions")
