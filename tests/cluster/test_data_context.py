import time
from typing import Any

import ray
from ray.data import DataContext

from medfocus.cluster.data_context import rows_in_order, scoped_data_context


def slow_first(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(2.0 if batch["item"][0] == 0 else 0.0)
    return batch


def test_changes_end_with_the_block_also_after_an_error() -> None:
    context, before = DataContext.get_current(), DataContext.get_current().copy()
    for error in (None, KeyError()):
        try:
            with scoped_data_context() as inside:
                assert DataContext.get_current() is inside and inside == before
                inside.execution_options.preserve_order = True
                inside.target_max_block_size = 1
                if error:
                    raise error
        except KeyError:
            pass
        assert DataContext.get_current() is context and context == before


def test_a_dataset_keeps_the_settings_of_the_block_that_made_it(ray_session: None) -> None:
    with rows_in_order():
        dataset = ray.data.from_items([0, 1, 2, 3], override_num_blocks=4).map_batches(slow_first, num_cpus=0.5)
    assert not DataContext.get_current().execution_options.preserve_order
    assert [row["item"] for row in dataset.iter_rows()] == [0, 1, 2, 3]
    unordered = ray.data.from_items([0, 1, 2, 3], override_num_blocks=4).map_batches(slow_first, num_cpus=0.5)
    assert [row["item"] for row in unordered.iter_rows()][-1] == 0
