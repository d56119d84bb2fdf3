import pytest
import torch

from medfocus.stages.tower import CachedTokens
from medfocus.stages.tuning import TrainingBatch, anneal, prompt_loss, train_epoch


def optimizer_of(*peaks: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "peak": peak} for peak in peaks]
    return torch.optim.AdamW(groups)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_learning_rates_are_those_of_torch_s_cosine_schedule() -> None:
    """But for rounding: torch computes each rate from the one before."""
    optimizer, epochs = optimizer_of(1e-3, 3e-2), 60
    reference = torch.optim.AdamW([{"params": [torch.zeros(1)], "lr": peak} for peak in (1e-3, 3e-2)])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, epochs)
    for epoch in range(epochs):
        anneal(optimizer, epoch / epochs)
        assert rates(optimizer) == pytest.approx(rates(reference), rel=1e-12)
        reference.step()
        schedule.step()
    anneal(optimizer, 1.0)
    assert rates(optimizer) == pytest.approx([0, 0], abs=1e-12)


def test_learning_rates_depend_on_the_share_of_the_epochs_alone() -> None:
    """A resumed training has the rates of one that was not interrupted, to the last bit."""
    whole, resumed = optimizer_of(1e-3), optimizer_of(1e-3)
    for epoch in range(20):
        anneal(whole, epoch / 20)
    anneal(resumed, 19 / 20)
    assert rates(whole) == rates(resumed)


def test_an_epoch_takes_one_step_for_each_batch_and_sums_the_losses() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tokens = CachedTokens(inputs, torch.zeros(2, 0))
    batches = [TrainingBatch(tokens, torch.zeros(2, 1), None, torch.tensor(target)) for target in ([0, 1], [1, 0])]
    total, steps = train_epoch(
        lambda batch: batch.whole.cls @ weight, optimizer, batches, 0.3, lambda: weight.square().sum()
    )

    expected, by_hand = torch.zeros(2, 2, requires_grad=True), 0.0
    for batch in batches:
        loss = prompt_loss(inputs @ expected, batch.target, 0.3) + expected.square().sum()
        (gradient,) = torch.autograd.grad(loss, expected)
        expected, by_hand = (expected - 0.5 * gradient).detach().requires_grad_(), by_hand + loss.item()
    assert steps == 2 and total == pytest.approx(by_hand) and torch.allclose(weight, expected)
    assert weight.any()
