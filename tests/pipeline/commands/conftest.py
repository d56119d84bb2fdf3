"""What tests of ``pack`` share."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from medfocus.pipeline.commands import pack
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.ingest import portion
from tests.pipeline.ingest.files import (
    PACK_SETTINGS,
    pack_here,
    survey_here,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def config(work: Path) -> Config:
    """A configuration that keeps the names of files."""
    return load_config(None, [f"work={work}", "deid.names=keep", *PACK_SETTINGS])


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "in"


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray runs in tasks runs in this process."""
    monkeypatch.setattr(pack, "connected", lambda *_: nullcontext({"CPU": 2.0}))
    monkeypatch.setattr(pack, "check_shared", lambda *_, **__: None)
    monkeypatch.setattr(pack, "survey", survey_here)
    monkeypatch.setattr(pack, "pack_portions", pack_here)
    monkeypatch.setattr(portion, "Isolation", lambda name, journal: lambda stage, batch: stage(batch))
    monkeypatch.setattr(portion, "open_journal", lambda: None)
