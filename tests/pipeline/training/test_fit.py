from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import DataContext

from medfocus.cluster.resources import Share
from medfocus.pipeline.config import Config
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.training import fit


class FailingTrainer:
    """A trainer that notes the order that its datasets and Ray Train's workers keep, and fails."""

    orders: list[bool]

    def __init__(self, *given: Any, datasets: dict[str, ray.data.Dataset], **named: Any):
        FailingTrainer.orders = [dataset.context.execution_options.preserve_order for dataset in datasets.values()]

    def fit(self) -> None:
        # Ray Train copies the context at this moment, for its workers and for their parts of the datasets.
        FailingTrainer.orders.append(DataContext.get_current().execution_options.preserve_order)
        raise ray.train.TrainingFailedError("none")


@pytest.mark.parametrize("share_of_memory", [0.0, 1.0])
def test_training_keeps_rows_in_order_and_nothing_after_it_does(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, share_of_memory: float
) -> None:
    (tmp_path / "features").mkdir()
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "features" / "part-1.parquet")
    monkeypatch.setattr(fit, "_KEPT_IN_MEMORY", share_of_memory)
    monkeypatch.setattr(fit, "TorchTrainer", FailingTrainer)
    context, before = DataContext.get_current(), DataContext.get_current().copy()
    config, settings = Config(), SimpleNamespace()
    prefix, share = locate(str(tmp_path), config.storage), Share(1, 1.0, 0.0, 1)
    with pytest.raises(MedFocusError, match="training failed"):
        fit.fit(config, settings, prefix, {"a": 0, "b": 1}, "key", share, "identity")
    assert FailingTrainer.orders == [True] * (2 if share_of_memory else 3)
    assert DataContext.get_current() is context and context == before
    assert not context.execution_options.preserve_order
