import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from medfocus.pipeline.commands import embed, pack, train
from medfocus.pipeline.config import load_config
from tests.faults.injection import ScoreCommand

COUNT, ROWS_PER_SHARD = 48, 6
SETTINGS = ["segment.points_per_side=2", "score.max_quarantined=0.5", "deid.names=keep"]


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> SimpleNamespace:
    """Phantoms in eight shards and a model trained on them, without any output of ``score``."""
    root = tmp_path_factory.mktemp("faults")
    subprocess.run([sys.executable, "-m", "medfocus.starter.phantoms", str(root), "--count", str(COUNT)], check=True)
    settings = [*SETTINGS, f"work={root / 'work'}", f"pack.rows_per_shard={ROWS_PER_SHARD}", "train.epochs=2"]
    config = load_config(None, settings)
    pack.run(config, str(root / "images"), str(root / "shards"), str(root / "labels.csv"))
    embed.run(config, str(root / "shards"), str(root / "features"))
    model = train.run(config, str(root / "features"), "faults")["model_uri"]
    images = {f"{index:06d}.png" for index in range(COUNT)}
    return SimpleNamespace(root=root, config=config, model=model, images=images, shards=str(root / "shards"))


@pytest.fixture(scope="session")
def undisturbed(archive: SimpleNamespace) -> dict[str, dict]:
    """The predictions of an undisturbed run, by ``image_id``."""
    command = _command(archive, archive.root / "undisturbed")
    command.finish()
    return {row["image_id"]: row for row in command.rows("predictions")}


@pytest.fixture
def command(archive: SimpleNamespace, tmp_path: Path) -> ScoreCommand:
    """A command over the archive, with an output of its own."""
    return _command(archive, tmp_path / "out")


@pytest.fixture
def command_with_own_shards(command: ScoreCommand, tmp_path: Path) -> ScoreCommand:
    """A command over a copy of the shards, which the test may damage."""
    shutil.copytree(command.shards, tmp_path / "shards")
    return replace(command, shards=str(tmp_path / "shards"))


def _command(archive: SimpleNamespace, out: Path) -> ScoreCommand:
    return ScoreCommand(archive.shards, str(out), archive.model, [*SETTINGS, f"work={archive.root / 'work'}"])
