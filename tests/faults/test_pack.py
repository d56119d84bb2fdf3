"""``pack`` is killed, or decodes an image that kills its process."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medfocus.pipeline.data.index import committed, read_portions
from medfocus.pipeline.data.manifest import read_manifest
from tests.faults.injection import kill, start_command, wait_for_result, wait_until
from tests.pipeline.ingest.files import counted, picture, place, rows_of, write_each

pytestmark = pytest.mark.faults

IMAGES = {f"{seed:03d}.png": picture(seed, side=96) for seed in range(400)}


@dataclass
class PackCommand:
    """A call of ``medfocus pack`` over a folder, which can be run again after an interruption.

    Args:
        folder: holds the source, the shards and the work folder.
        environment: variables that are added to the process's own.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def start(self) -> subprocess.Popen[str]:
        settings = [f"work={self.folder / 'work'}", "pack.rows_per_shard=5", "deid.names=keep", "burned_in.ocr=never"]
        arguments = ["pack", str(self.folder / "in"), str(self.out)]
        return start_command(arguments, settings, self.environment)

    def finish(self) -> dict[str, Any]:
        return wait_for_result(self.start())

    def kill_after(self, portions: int) -> None:
        """Kill the driver and all workers once so many portions are committed."""
        process = self.start()
        wait_until(lambda: len(committed(place(self.out))) >= portions, process)
        kill(process)
        assert not (self.out / "manifest.json").exists()


@pytest.fixture
def command(tmp_path: Path) -> PackCommand:
    write_each(tmp_path / "in", IMAGES)
    return PackCommand(tmp_path)


def test_the_driver_and_all_workers_are_killed(command: PackCommand) -> None:
    for portions in (3, 20):
        command.kill_after(portions)
    finished = {shard.name for portion in read_portions(place(command.out)) for shard in portion.shards}
    before = {name: (command.out / name).stat() for name in finished}
    result = command.finish()
    assert result["rows"] == len(IMAGES) == result["packed"] + sum(5 for _ in finished)
    assert set(counted(command.out)) == set(IMAGES)
    after = {name: (command.out / name).stat() for name in finished}
    assert all(
        (after[name].st_ino, after[name].st_mtime_ns) == (at.st_ino, at.st_mtime_ns) for name, at in before.items()
    )
    assert len(rows_of(command.out)) == len(IMAGES)  # no shard is there that the manifest does not name
    assert command.finish()["packed"] == 0 and read_manifest(place(command.out)).version == 1
    assert not list((command.folder / "work" / "pack").glob("*.sqlite*"))  # the catalog of a finished call is removed


def test_only_the_image_that_kills_its_worker_is_quarantined(command: PackCommand) -> None:
    victim = "123.png"
    command.environment["FAULT_KILL_ON"] = IMAGES[victim][-60:-40].hex()  # compressed pixels, which no other image has
    result = command.finish()
    assert (result["rows"], result["quarantined"]) == (len(IMAGES) - 1, 1)
    assert set(counted(command.out)) == set(IMAGES) - {victim}
    (row,) = rows_of(command.out / "quarantine")
    assert (row["image_id"], row["stage"], row["error"]) == (victim, "pack", "WorkerDied")
    del command.environment["FAULT_KILL_ON"]
    assert command.finish()["packed"] == 0
