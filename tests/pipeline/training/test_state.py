from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medfocus.pipeline.training.state import HeldOutLogits, TrainingState
from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.prompted_clip import PromptedCLIP

TARGETS = torch.tensor([0, 1, 1])


@pytest.fixture
def model(starter_clip, starter_tokenizer) -> PromptedCLIP:
    settings = PromptSettings(("solid mass", "cyst"), "a {}", 4, "both", 2, 2, False, True)
    return PromptedCLIP(starter_clip, starter_tokenizer, settings)


def held_out(confidence: float) -> HeldOutLogits:
    """Correct predictions; the larger the confidence, the lower the loss."""
    return HeldOutLogits(torch.nn.functional.one_hot(TARGETS, 2) * confidence, TARGETS.clone())


def learned(value: float) -> dict[str, torch.Tensor]:
    return {"fusion": torch.tensor([value])}


def test_a_round_keeps_its_best_epoch_and_the_final_round_has_their_mean_length() -> None:
    state = TrainingState.begin(learned(0.0))
    for epoch, confidence in enumerate([1.0, 3.0, 2.0, 0.5]):
        assert not state.round_is_over(10, 3, holds_out=True)
        state.add_epoch(1.0, held_out(confidence), learned(epoch + 10.0))
    assert state.round_is_over(10, 2, holds_out=True) and not state.round_is_over(10, 3, holds_out=True)
    assert state.round_is_over(4, 2, holds_out=True)
    assert state.best_epoch == 1 and state.best["fusion"].item() == 11
    assert torch.equal(state.held_out[0].logits, held_out(3.0).logits)
    state.next_round()
    for confidence in [1.0, 2.0, 3.0, 4.0]:
        state.add_epoch(1.0, held_out(confidence), learned(20.0))
    state.next_round()
    assert state.best_epochs == [1, 3] and state.final_epochs == 3  # the mean of 2 and 4 epochs
    for epoch in range(3):
        assert not state.round_is_over(10, 2, holds_out=False)
        state.add_epoch(1.0, None, learned(30.0 + epoch))
    assert state.round_is_over(10, 2, holds_out=False)
    result = state.result(resumed_epochs=2)
    assert result.state["fusion"].item() == 32 and (result.epochs, result.resumed_epochs) == (3, 2)
    assert result.held_out_targets.tolist() == [0, 1, 1, 0, 1, 1]
    assert result.held_out_logits.tolist() == [*held_out(3.0).logits.tolist(), *held_out(4.0).logits.tolist()]
    assert len(result.history) == state.total_epochs == 11
    assert "validation_loss" in result.history[0] and "validation_loss" not in result.history[-1]
    assert [figures["round"] for figures in result.history] == [0.0] * 4 + [1.0] * 4 + [2.0] * 3


def test_held_out_logits_follow_the_rounds_numbers() -> None:
    """Of twelve rounds, the tenth is not sorted before the second; a round whose loss is never a number has none."""
    state = TrainingState.begin(learned(0.0))
    for number in range(12):
        state.add_epoch(1.0, held_out(float("nan") if number == 1 else number + 1.0), learned(1.0))
        state.next_round()
    assert state.result(0).held_out_logits[::3, 0].tolist() == [1.0, *range(3, 13)]


def test_a_checkpoint_restores_the_training(model: PromptedCLIP, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(model.learned.parameters(), lr=0.1)
    state = TrainingState.begin(model.learned_state())
    whole, region = (model.cache_tokens(torch.randn(3, 197, 192)) for _ in range(2))
    image, text = model(whole, torch.rand(3, 196), region)
    torch.nn.functional.cross_entropy(model.logits(image, text), TARGETS).backward()
    optimizer.step()
    state.add_epoch(0.5, held_out(1.0), model.learned_state())
    state.next_round()
    state.add_epoch(0.4, held_out(2.0), model.learned_state())
    state.save(tmp_path, model, optimizer)
    trained = model.learned_state()
    model.load_learned(state.initial)
    new_optimizer = torch.optim.AdamW(model.learned.parameters(), lr=0.1)
    restored = TrainingState.load(tmp_path, model, new_optimizer)
    assert all(torch.equal(model.learned_state()[name], value) for name, value in trained.items())
    moments, saved_moments = (one.state_dict()["state"] for one in (new_optimizer, optimizer))
    assert moments.keys() == saved_moments.keys() != set()
    assert all(torch.equal(moments[key]["exp_avg"], saved_moments[key]["exp_avg"]) for key in moments)
    for name in ("initial", "best"):
        tensors, saved = getattr(restored, name), getattr(state, name)
        assert tensors.keys() == saved.keys() and all(torch.equal(tensors[key], saved[key]) for key in saved)
    assert restored.held_out.keys() == state.held_out.keys() == {0, 1}
    for number, saved_logits in state.held_out.items():
        assert torch.equal(restored.held_out[number].logits, saved_logits.logits)
        assert torch.equal(restored.held_out[number].targets, saved_logits.targets)
    for name in ("round", "epoch", "best_epoch", "best_loss", "best_epochs", "history"):
        assert getattr(restored, name) == getattr(state, name)
    assert not torch.equal(restored.initial["fusion"], restored.best["fusion"])


def test_a_checkpoint_has_a_file_of_held_out_logits_for_each_round(model: PromptedCLIP, tmp_path: Path) -> None:
    state = TrainingState.begin(model.learned_state())
    for number in range(2):
        state.add_epoch(0.5, held_out(number + 1.0), model.learned_state())
        state.next_round()
    state.save(tmp_path, model, torch.optim.AdamW(model.learned.parameters()))
    learned_files = {"learned.safetensors", "best.safetensors", "initial.safetensors"}
    rounds = {"held_out-0.safetensors", "held_out-1.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"state.json", "optimizer.pt"} | learned_files | rounds
    tensors = load_file(tmp_path / "held_out-1.safetensors")
    assert tensors.keys() == {"logits", "targets"}
    assert torch.equal(tensors["logits"], held_out(2.0).logits) and torch.equal(tensors["targets"], TARGETS)
