import torch

from medfocus.pipeline.training.loop import RowsInMemory

COUNT, VIEWS = 40, 3


def rows() -> RowsInMemory:
    """Rows whose target is their number; in each view, ten times the number plus that of the view."""
    numbers = torch.arange(COUNT)
    views = numbers[:, None] * 10 + torch.arange(VIEWS)
    return RowsInMemory({"target": numbers, "fold": numbers % 3, "focus": views, "tokens cls": views[..., None]})


def test_held_out_rows_keep_their_order_and_are_the_images_themselves() -> None:
    batches = list(rows().batches(16))
    assert [len(batch["target"]) for batch in batches] == [16, 16, 8]
    target, focus = (torch.cat([batch[name] for batch in batches]) for name in ("target", "focus"))
    assert torch.equal(target, torch.arange(COUNT)) and torch.equal(focus, target * 10)


def test_training_rows_are_shuffled_and_all_of_their_views_are_drawn_in_time() -> None:
    views: dict[int, set[int]] = {number: set() for number in range(COUNT)}
    orders = set()
    for seed in range(20):
        batches = list(rows().batches(16, seed))
        target = torch.cat([batch["target"] for batch in batches])
        focus = torch.cat([batch["focus"] for batch in batches])
        assert sorted(target.tolist()) == list(range(COUNT))
        assert torch.equal(focus // 10, target)
        assert torch.equal(torch.cat([batch["tokens cls"] for batch in batches])[:, 0], focus)
        orders.add(tuple(target.tolist()))
        for number in focus.tolist():
            views[number // 10].add(number % 10)
    assert len(orders) == 20 and all(drawn == set(range(VIEWS)) for drawn in views.values())
