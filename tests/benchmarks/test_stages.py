"""The benchmark of the stages over few images, and the prediction that is made from it."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.scale import Cluster, predict
from benchmarks.stages import STAGES, StageCosts

COSTS = StageCosts(
    cpu={"decode": 0.002, "segment": 0.2, "embed": 0.02, "commit": 0.001},
    object_store_bytes=100_000,
    waiting=0.0,
    start=10.0,
    image_bytes=30_000,
    row_bytes=300,
    rows_per_shard=16,
)
CLUSTER = Cluster(nodes=10, cpus=16, gpus=0, gigabits=10, price=1, gpu_seconds=0, driver=0.025)


def test_stages_are_measured_where_they_run(tmp_path: Path) -> None:
    """Of an image, little more than its pixels goes to the models."""
    command = [sys.executable, "-m", "benchmarks.stages", "--images", "16", "--costs", str(tmp_path / "costs.json")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    costs = StageCosts(**json.loads((tmp_path / "costs.json").read_text()))
    assert all(costs.cpu[stage] > 0 for stage in STAGES)
    pixels = 320 * 320
    assert pixels < costs.object_store_bytes < 1.1 * pixels
    assert costs.rows_per_shard == 16 and 0 <= costs.waiting < 1


def test_the_slowest_part_sets_the_pace() -> None:
    """Ten nodes of 16 CPUs, 0.223 s an image; a single plan of Ray Data takes all shards of a million images."""
    prediction = predict(1_000_000, COSTS, CLUSTER, rows_per_shard=256)
    assert prediction.slowest == "CPUs" and prediction.rates["CPUs"] == pytest.approx(160 / 0.223)
    assert prediction.seconds == pytest.approx(10 + 256 * 0.22 + 1_000_000 * 0.223 / 160)


@pytest.mark.parametrize(
    ("costs", "cluster", "slowest"),
    [
        (COSTS, replace(CLUSTER, gigabits=0.01), "network"),
        (COSTS, replace(CLUSTER, nodes=10_000), "driver"),
        (StageCosts(**{**asdict(COSTS), "cpu": COSTS.cpu | {"decode": 0.2}}), CLUSTER, "CPUs"),
        (COSTS, replace(CLUSTER, gpus=1, gpu_seconds=0.1), "GPUs"),
    ],
)
def test_each_part_can_be_the_slowest(costs: StageCosts, cluster: Cluster, slowest: str) -> None:
    assert predict(1_000_000, costs, cluster, rows_per_shard=256).slowest == slowest
