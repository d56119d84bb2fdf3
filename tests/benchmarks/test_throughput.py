"""The benchmark of the throughput over few images; times are not compared, since other work shares the cores."""

from pathlib import Path

import numpy as np

from benchmarks.starter import iou
from benchmarks.throughput.__main__ import baseline_answers, measure_baseline, measure_score, score_answers
from benchmarks.throughput.workload import ROWS_PER_SHARD, actor_count, prepare


def test_score_and_its_models_answer_as_the_loop_over_the_predictor(tmp_path: Path) -> None:
    """A shard for each actor and one more of ``score``; a shard for each actor of the other programs."""
    images = ROWS_PER_SHARD * actor_count()
    workload = prepare(tmp_path, images + ROWS_PER_SHARD, ["segment.points_per_side=4"])
    score = measure_score("score", workload, str(workload.shards))
    ceiling, predictor = (measure_baseline(name, workload, images) for name in ("ceiling", "predictor"))
    # The first shards of ``score`` do not count for its speed, nor does the first batch of the loop.
    assert (score.images, ceiling.images, predictor.images) == (ROWS_PER_SHARD, images, images - 1)
    assert all(row.speed > 0 and row.mebibytes > 100 for row in (score, ceiling, predictor))
    plain = baseline_answers("predictor", workload)
    assert len(plain) == images
    for answers in (score_answers(workload), baseline_answers("ceiling", workload)):
        assert set(plain) <= set(answers)
        assert np.mean([iou(answers[name][0], plain[name][0]) for name in plain]) > 0.99
        assert all(answers[name][1] == plain[name][1] for name in plain)
