import torch

from medfocus.pipeline.training.loop import KeptRows

COUNT, VIEWS = 40, 3


def rows() -> KeptRows:
    """Rows that carry their own number, and in each view the view's number beside it."""
    numbers = torch.arange(COUNT)
    of_views = numbers[:, None] * 10 + torch.arange(VIEWS)
    return KeptRows({"target": numbers, "fold": numbers % 3, "focus": of_views, "tokens cls": of_views[..., None]})


def test_held_out_rows_are_seen_in_order_and_as_they_are() -> None:
    batches = list(rows().batches(16))
    assert [len(batch["target"]) for batch in batches] == [16, 16, 8]
    target, focus = (torch.cat([batch[name] for batch in batches]) for name in ("target", "focus"))
    assert torch.equal(target, torch.arange(COUNT)) and torch.equal(focus, target * 10)


def test_rows_to_learn_from_are_shuffled_and_all_views_of_them_are_seen_in_time() -> None:
    seen: dict[int, set[int]] = {number: set() for number in range(COUNT)}
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
            seen[number // 10].add(number % 10)
    assert len(orders) == 20 and all(views == set(range(VIEWS)) for views in seen.values())
