from pathlib import Path

import pytest
import torch

from medfocus.pipeline.training.state import TrainingState
from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.prompted_clip import PromptedCLIP

TARGETS = torch.tensor([0, 1, 1])


@pytest.fixture
def model(starter_clip, starter_tokenizer) -> PromptedCLIP:
    settings = PromptSettings(("solid mass", "cyst"), "a {}", 4, "both", 2, 2, False, True)
    return PromptedCLIP(starter_clip, starter_tokenizer, settings)


def says(confidence: float) -> torch.Tensor:
    return torch.nn.functional.one_hot(TARGETS, 2) * confidence


def state(value: float) -> dict[str, torch.Tensor]:
    return {"fusion": torch.tensor([value])}


def test_the_best_epoch_of_a_round_is_kept_and_the_last_round_is_as_long() -> None:
    progress = TrainingState.beginning(state(0.0))
    for epoch, confidence in enumerate([1.0, 3.0, 2.0, 0.5]):
        assert not progress.ended(10, 3, alone=False)
        progress.add_epoch(1.0, says(confidence), TARGETS, state(epoch + 10.0))
    assert progress.ended(10, 2, alone=False) and not progress.ended(10, 3, alone=False)
    assert progress.ended(4, 2, alone=False)
    assert progress.best_epoch == 1 and progress.best["fusion"].item() == 11
    assert torch.equal(progress.held_out["logits 0"], says(3.0))
    progress.next_round()
    for confidence in [1.0, 2.0, 3.0, 4.0]:
        progress.add_epoch(1.0, says(confidence), TARGETS, state(20.0))
    progress.next_round()
    assert progress.last_epochs == 3  # of 2 and 4
    for epoch in range(3):
        assert not progress.ended(10, 2, alone=True)
        progress.add_epoch(1.0, None, None, state(30.0 + epoch))
    assert progress.ended(10, 2, alone=True)
    outcome = progress.outcome()
    assert outcome["state"]["fusion"].item() == 32 and outcome["epochs"] == 3 and outcome["best_epochs"] == [1, 3]
    assert outcome["held_out_targets"].tolist() == [0, 1, 1, 0, 1, 1]
    assert outcome["held_out_logits"][:3].tolist() == says(3.0).tolist()
    assert len(progress.history) == progress.epochs_done == 11
    assert "validation_loss" in progress.history[0] and "validation_loss" not in progress.history[-1]


def test_what_is_saved_is_what_goes_on(model: PromptedCLIP, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(model.learned.parameters(), lr=0.1)
    progress = TrainingState.beginning(model.learned_state())
    whole, region = (model.cache_tokens(torch.randn(3, 197, 192)) for _ in range(2))
    image, text = model(whole, torch.rand(3, 196), region)
    torch.nn.functional.cross_entropy(model.logits(image, text), TARGETS).backward()
    optimizer.step()
    progress.add_epoch(0.5, says(1.0), TARGETS.clone(), model.learned_state())
    progress.next_round()
    progress.add_epoch(0.4, says(2.0), TARGETS, model.learned_state())
    progress.save(tmp_path, model, optimizer)
    left = model.learned_state()
    model.load_learned(progress.initial)
    fresh = torch.optim.AdamW(model.learned.parameters(), lr=0.1)
    again = TrainingState.load(tmp_path, model, fresh)
    assert all(torch.equal(model.learned_state()[name], value) for name, value in left.items())
    assert fresh.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys() != set()
    for name, value in vars(progress).items():
        found = getattr(again, name)
        if isinstance(value, dict):
            assert found.keys() == value.keys() and all(torch.equal(found[key], value[key]) for key in value)
        else:
            assert found == value
    assert not torch.equal(again.initial["fusion"], again.best["fusion"])
