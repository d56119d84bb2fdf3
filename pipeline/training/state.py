"""The state of a training, and its checkpoint: tensors as safetensors, counters as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from medfocus.stages.prompted_clip import PromptedCLIP

# Version of the files of a checkpoint; a training never reads checkpoints of another version.
CHECKPOINT_LAYOUT = 2

_COUNTERS = ("round", "epoch", "best_epoch", "best_loss", "best_epochs", "history")

State = dict[str, torch.Tensor]


class HeldOutLogits(NamedTuple):
    """What the best epoch of a round predicts for the round's held-out rows.

    Args:
        logits: float32 [N, C].
        targets: int64 [N], the classes of the rows.
    """

    logits: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training as plain arrays, since Ray returns no tensors to the driver.

    Args:
        state: learned arrays by name.
        held_out_logits: float32 [N, C], the rounds' held-out rows one after the other.
        held_out_targets: int64 [N], their classes.
        epochs: number of epochs of the last round.
        resumed_epochs: number of epochs, of all rounds, that an earlier call had finished.
        history: figures of each epoch of all rounds.
    """

    state: dict[str, np.ndarray]
    held_out_logits: np.ndarray
    held_out_targets: np.ndarray
    epochs: int
    resumed_epochs: int
    history: list[dict[str, float]]


@dataclass
class TrainingState:
    """The rounds and epochs so far, the best epoch of the present round, and the held-out logits of each round.

    Args:
        initial: learned state that every round starts from.
        best: learned state of the best epoch of the present round; of the latest one where nothing is held out.
        held_out: held-out logits of each round by its number; the final round on all rows has none.
        round: number of the present round.
        epoch: epochs of the present round so far.
        best_epoch: number of its best epoch.
        best_loss: held-out loss of its best epoch.
        best_epochs: number of the best epoch of each finished round.
        history: figures of each epoch of all rounds.
    """

    initial: State
    best: State
    held_out: dict[int, HeldOutLogits] = field(default_factory=dict)
    round: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    best_epochs: list[int] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def begin(cls, initial: State) -> "TrainingState":
        """The state before the first epoch, from the initial learned state."""
        return cls(initial=initial, best=initial)

    @property
    def total_epochs(self) -> int:
        """Number of epochs of all rounds so far."""
        return len(self.history)

    @property
    def final_epochs(self) -> int:
        """Number of epochs of a round that holds nothing out: the mean of the other rounds' best."""
        return round(sum(epoch + 1 for epoch in self.best_epochs) / len(self.best_epochs))

    def round_is_over(self, epochs: int, patience: int, *, holds_out: bool) -> bool:
        """Whether the present round ends here.

        Args:
            epochs: most epochs of a round with held-out rows.
            patience: most epochs without a better held-out loss.
            holds_out: whether the round has held-out rows; without them it has ``final_epochs``.
        """
        if not holds_out:
            return self.epoch >= self.final_epochs
        return self.epoch >= epochs or self.epoch - self.best_epoch > patience

    def add_epoch(self, loss: float, held_out: HeldOutLogits | None, learned: State) -> None:
        """Record an epoch.

        Args:
            loss: mean training loss of its batches.
            held_out: logits of the held-out rows after the epoch; None where nothing is held out.
            learned: learned state after the epoch.
        """
        figures = {"round": float(self.round), "training_loss": loss}
        if held_out is None:
            self.best, self.best_epoch = learned, self.epoch
        else:
            held_out_loss = F.cross_entropy(*held_out).item()
            accuracy = (held_out.logits.argmax(1) == held_out.targets).float().mean().item()
            figures |= {"validation_loss": held_out_loss, "validation_accuracy": accuracy}
            if held_out_loss < self.best_loss:
                self.best, self.best_epoch, self.best_loss = learned, self.epoch, held_out_loss
                self.held_out[self.round] = held_out
        self.history.append(figures)
        self.epoch += 1

    def next_round(self) -> None:
        """Close the present round and begin the next."""
        self.best_epochs.append(self.best_epoch)
        self.round, self.epoch, self.best_epoch, self.best_loss = self.round + 1, 0, 0, float("inf")

    def result(self, resumed_epochs: int) -> TrainingResult:
        """The result after the last round.

        Args:
            resumed_epochs: number of epochs that an earlier call had finished.
        """
        rounds = [self.held_out[number] for number in sorted(self.held_out)]
        return TrainingResult(
            state={name: value.numpy() for name, value in self.best.items()},
            held_out_logits=torch.cat([held_out.logits for held_out in rounds]).numpy(),
            held_out_targets=torch.cat([held_out.targets for held_out in rounds]).numpy(),
            epochs=self.epoch,
            resumed_epochs=resumed_epochs,
            history=self.history,
        )

    def save(self, folder: Path, model: PromptedCLIP, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint.

        ``learned``, ``best`` and ``initial.safetensors`` hold learned states, ``held_out-ROUND.safetensors`` the
        ``logits`` and ``targets`` of a round, ``optimizer.pt`` the optimizer, ``state.json`` the counters.

        Args:
            folder: an empty folder.
            model: the model, whose learned part is saved.
            optimizer: the optimizer of the learned part.
        """
        for name, state in (("learned", model.learned_state()), ("best", self.best), ("initial", self.initial)):
            save_file(state, folder / f"{name}.safetensors")
        for number, held_out in self.held_out.items():
            save_file(held_out._asdict(), folder / f"held_out-{number}.safetensors")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        counters = {name: getattr(self, name) for name in _COUNTERS} | {"held_out_rounds": list(self.held_out)}
        (folder / "state.json").write_text(json.dumps(counters))

    @classmethod
    def load(cls, folder: Path, model: PromptedCLIP, optimizer: torch.optim.Optimizer) -> "TrainingState":
        """Read a checkpoint, and restore the learned part of the model and the optimizer.

        Args:
            folder: folder that ``save`` wrote.
            model: the model, whose learned part is replaced.
            optimizer: a new optimizer of the learned part.
        """
        model.load_learned(load_file(folder / "learned.safetensors"))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        counters: dict[str, Any] = json.loads((folder / "state.json").read_text())
        held_out = {
            number: HeldOutLogits(**load_file(folder / f"held_out-{number}.safetensors"))
            for number in counters.pop("held_out_rounds")
        }
        initial, best = (load_file(folder / f"{name}.safetensors") for name in ("initial", "best"))
        return cls(initial=initial, best=best, held_out=held_out, **counters)
