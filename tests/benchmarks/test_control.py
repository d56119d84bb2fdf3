"""The benchmark of the control path, over few shards."""

from pathlib import Path

import pytest

from benchmarks.control import UNFINISHED_EVERY, config_in, prepare
from benchmarks.no_models import NoModels
from medfocus.pipeline.commands import score
from medfocus.pipeline.execution import stream


def test_a_run_resumes_in_several_plans_of_ray_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """One shard in a hundred is unfinished, and a plan takes two shards for each actor."""
    monkeypatch.setattr(stream, "ModelActor", NoModels)
    monkeypatch.setattr(stream, "_SHARDS_PER_ACTOR", 2)
    prepare(tmp_path, 5 * UNFINISHED_EVERY)
    result = score.run(config_in(tmp_path), *(str(tmp_path / name) for name in ("shards", "finished", "model")))
    assert (result["rows"], result["resumed"], result["quarantined"]) == (500, 495, 5)
    sizes = [path.stat().st_size for path in (tmp_path / "finished" / "predictions").iterdir()]
    assert len(sizes) == 500 and sum(size > 0 for size in sizes) == 5  # files of finished shards stay empty
