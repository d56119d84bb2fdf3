"""How far a training is, and how it travels in a checkpoint: tensors as safetensors, the rest as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from medfocus.stages.prompted_clip import PromptedCLIP

State = dict[str, torch.Tensor]


@dataclass
class TrainingState:
    """Rounds and epochs done, the best of the present round, and what the rounds said of their held-out rows.

    ``history`` has an entry an epoch, whatever the round. ``best`` is the learned state of the best epoch of the
    present round, ``initial`` what every round begins with. ``held_out`` has for each round, by its number, the
    logits of the best epoch and their targets.
    """

    initial: State
    best: State
    held_out: State = field(default_factory=dict)
    round: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    best_epochs: list[int] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def beginning(cls, state: State) -> "TrainingState":
        return cls(initial=state, best=state)

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def last_epochs(self) -> int:
        """How many epochs a round that holds nothing out has: the mean of the others' best."""
        return round(sum(epoch + 1 for epoch in self.best_epochs) / len(self.best_epochs))

    def ended(self, epochs: int, patience: int, *, alone: bool) -> bool:
        """Whether the present round is over."""
        if alone:
            return self.epoch >= self.last_epochs
        return self.epoch >= epochs or self.epoch - self.best_epoch > patience

    def add_epoch(self, loss: float, logits: torch.Tensor | None, targets: torch.Tensor | None, state: State) -> None:
        """Note an epoch: its training loss, its logits of the held-out rows if there are any, and the state it left."""
        entry = {"round": float(self.round), "training_loss": loss}
        held_out_loss = None
        if logits is not None and targets is not None:
            held_out_loss = F.cross_entropy(logits, targets).item()
            accuracy = (logits.argmax(1) == targets).float().mean().item()
            entry |= {"validation_loss": held_out_loss, "validation_accuracy": accuracy}
        if held_out_loss is None or held_out_loss < self.best_loss:
            self.best, self.best_epoch = state, self.epoch
        if held_out_loss is not None and held_out_loss < self.best_loss:
            assert logits is not None and targets is not None
            self.best_loss = held_out_loss
            self.held_out |= {f"logits {self.round}": logits, f"targets {self.round}": targets}
        self.history.append(entry)
        self.epoch += 1

    def next_round(self) -> None:
        self.best_epochs.append(self.best_epoch)
        self.round, self.epoch, self.best_epoch, self.best_loss = self.round + 1, 0, 0, float("inf")

    def outcome(self) -> dict[str, Any]:
        """What the driver needs, as plain arrays: Ray hands back no tensors."""
        rounds = sorted(int(name.split()[1]) for name in self.held_out if name.startswith("logits"))
        return {
            "state": {name: value.numpy() for name, value in self.best.items()},
            "held_out_logits": torch.cat([self.held_out[f"logits {number}"] for number in rounds]).numpy(),
            "held_out_targets": torch.cat([self.held_out[f"targets {number}"] for number in rounds]).numpy(),
            "epochs": self.epoch,
            "best_epochs": self.best_epochs or [self.best_epoch],
            "history": self.history,
        }

    def save(self, folder: Path, learned: PromptedCLIP, optimizer: torch.optim.Optimizer) -> None:
        """Write all that is needed to go on."""
        tensors = {"learned": learned.learned_state(), "best": self.best, "initial": self.initial}
        for name, state in (tensors | {"held_out": self.held_out}).items():
            save_file(state, folder / f"{name}.safetensors")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        plain = {name: value for name, value in vars(self).items() if name not in ("initial", "best", "held_out")}
        (folder / "progress.json").write_text(json.dumps(plain))

    @classmethod
    def load(cls, folder: Path, learned: PromptedCLIP, optimizer: torch.optim.Optimizer) -> "TrainingState":
        """Read what ``save`` wrote, and put the learned part and the optimizer in place."""
        learned.load_learned(load_file(folder / "learned.safetensors"))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        content: dict[str, Any] = json.loads((folder / "progress.json").read_text())
        content |= {name: load_file(folder / f"{name}.safetensors") for name in ("initial", "best", "held_out")}
        return cls(**content)
