from collections.abc import Iterator
from pathlib import Path

import pytest

from medfocus.pipeline.ingest import portion
from medfocus.pipeline.ingest.catalog import Catalog


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The folder of a source, which is not there yet."""
    return tmp_path / "in"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(tmp_path / "catalog" / "test.sqlite")
    yield catalog
    catalog.close(remove=True)


@pytest.fixture
def without_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions are packed without Ray: there is no journal of rows that kill their worker."""
    monkeypatch.setattr(portion, "Isolation", lambda name, journal: lambda stage, batch: stage(batch))
    monkeypatch.setattr(portion, "open_journal", lambda: None)
