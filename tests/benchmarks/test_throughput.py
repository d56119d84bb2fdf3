from pathlib import Path

import numpy as np

from benchmarks.starter import iou
from benchmarks.throughput.__main__ import found_by, of_way
from benchmarks.throughput.work import prepare


def test_batches_are_faster_than_the_plain_path_and_find_the_same(tmp_path: Path) -> None:
    """The benchmark's ways in small: the models alone against SAM2's own predictor, image by image."""
    work = prepare(tmp_path, 32, ["segment.points_per_side=4"])
    batched, plain = (of_way(way, work, 32) for way in ("ceiling", "predictor"))
    assert batched.speed > plain.speed
    ours, theirs = (found_by(way, work) for way in ("ceiling", "predictor"))
    assert set(ours) == set(theirs) and len(ours) == 32
    assert np.mean([iou(ours[name][0], theirs[name][0]) for name in ours]) > 0.99
    assert all(ours[name][1] == theirs[name][1] for name in ours)
