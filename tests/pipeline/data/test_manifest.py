from pathlib import Path

import pytest

from medfocus.pipeline.config import Config
from medfocus.pipeline.data.manifest import read_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import UsageError


def test_manifest_is_checked(tmp_path: Path) -> None:
    place = locate(str(tmp_path), Config().storage)
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        read_manifest(place)
    for content, message in (("{}", "not a MedFocus manifest"), ('{"version": "9", "shards": []}', "schema version 9")):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UsageError, match=message):
            read_manifest(place)
    (tmp_path / "manifest.json").write_text('{"version": "1", "shards": []}')
    with pytest.raises(UsageError, match="names no image"):
        read_manifest(place)
