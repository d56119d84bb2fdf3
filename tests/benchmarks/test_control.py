from pathlib import Path

import pytest

from benchmarks.control import UNFINISHED, prepare, settings
from benchmarks.nothing import NoModels
from medfocus.pipeline.commands import score
from medfocus.pipeline.execution import stream


def test_a_run_goes_on_in_several_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None) -> None:
    """The benchmark's own archive, small: one shard in a hundred is left, two of them in a plan of Ray Data."""
    monkeypatch.setattr(stream, "ModelActor", NoModels)
    monkeypatch.setattr(stream, "_SHARDS_PER_ACTOR", 2)
    prepare(tmp_path, 5 * UNFINISHED)
    result = score.run(settings(tmp_path), *(str(tmp_path / name) for name in ("shards", "finished", "model")))
    assert (result["rows"], result["resumed"], result["quarantined"]) == (500, 495, 5)
    sizes = [path.stat().st_size for path in (tmp_path / "finished" / "predictions").iterdir()]
    assert len(sizes) == 500 and sum(size > 0 for size in sizes) == 5  # a finished one's is empty here, and stays
