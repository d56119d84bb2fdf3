from pathlib import Path

import numpy as np

from benchmarks.starter import iou
from benchmarks.throughput.__main__ import found_by, found_by_score, of_score, of_way
from benchmarks.throughput.work import actors, prepare


def test_score_keeps_the_models_busy_and_finds_what_the_plain_path_finds(tmp_path: Path) -> None:
    """The benchmark in small: ``score``, the models alone, and SAM2's own predictor image by image."""
    work = prepare(tmp_path, 32 * actors(), ["segment.points_per_side=6"])
    score = of_score("score", work, str(work.shards))
    alone, plain = (of_way(way, work, 16 * actors()) for way in ("ceiling", "predictor"))
    assert score.speed > 0.4 * alone.speed and alone.speed > plain.speed
    ours, models, theirs = found_by_score(work), found_by("ceiling", work), found_by("predictor", work)
    assert set(models) == set(theirs) and len(theirs) == 16 * actors() and len(ours) == 32 * actors()
    for found in (ours, models):
        assert np.mean([iou(found[name][0], theirs[name][0]) for name in theirs]) > 0.99
        assert all(found[name][1] == theirs[name][1] for name in theirs)
