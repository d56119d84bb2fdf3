"""The training loop of each worker of Ray Train."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from pipeline import checkpoints
from pipeline.config import Config
from stages.objective import prompt_loss
from stages.prompt_settings import PromptSettings
from stages.prompted_clip import PromptedCLIP
from stages.weights import load_clip, load_tokenizer

# Rows a worker shuffles among where it streams; what is kept in memory is shuffled whole.
_SHUFFLED = 2048


@dataclass(frozen=True)
class Tuning:
    """What a worker needs to know; ``keep``: the features fit into memory and are read once, not in every epoch."""

    config: Config
    settings: PromptSettings
    threads: int
    keep: bool


class Rows:
    """A worker's rows of one split: read from storage in every epoch, or kept in memory where they fit."""

    def __init__(self, name: str, keep: bool):
        self.shard = ray.train.get_dataset_shard(name)
        self.kept: dict[str, np.ndarray] | None = None
        if keep:
            blocks = list(self.shard.iter_batches(batch_size=None, batch_format="numpy"))
            self.kept = {column: np.concatenate([block[column] for block in blocks]) for column in blocks[0]}

    def batches(self, size: int, seed: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The rows in batches, shuffled by a seed where one is given."""
        if self.kept is None:
            shuffle = {} if seed is None else {"local_shuffle_buffer_size": max(size, _SHUFFLED)}
            options = {"batch_format": "numpy", "local_shuffle_seed": seed, **shuffle}
            yield from self.shard.iter_batches(batch_size=size, **options)
            return
        count = len(self.kept["target"])
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        for start in range(0, count, size):
            chosen = order[start : start + size]
            yield {column: values[chosen] for column, values in self.kept.items()}


@dataclass
class Progress:
    """How far training is; travels in the checkpoint as JSON."""

    epoch: int
    best_epoch: int
    best_loss: float
    history: list[dict[str, float]]


def tune(options: dict[str, Any]) -> dict[str, Any]:
    """Tune the prompts until the validation loss no longer falls; every worker runs this.

    Returns:
        The learned state of the best epoch, the history, and how many epochs an earlier attempt had done.
    """
    tuning: Tuning = options["tuning"]
    train = tuning.config.train
    torch.set_num_threads(tuning.threads)
    model = _build(tuning)
    learned = _learned(model)
    optimizer = torch.optim.AdamW(learned.learned.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay)
    progress, best = _restore(learned, optimizer)
    resumed = progress.epoch
    training, validation = Rows("training", tuning.keep), Rows("validation", tuning.keep)
    while progress.epoch < train.epochs and progress.epoch - progress.best_epoch <= train.patience:
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * 0.5 * (1 + cos(pi * progress.epoch / train.epochs))
        training_loss = _train_epoch(model, optimizer, training, tuning, progress.epoch)
        loss, accuracy = _validate(model, validation, tuning)
        if loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = loss, progress.epoch
            best = learned.learned_state()
        entry = {"training_loss": training_loss, "validation_loss": loss, "validation_accuracy": accuracy}
        progress.history.append(entry)
        progress.epoch += 1
        _report(learned, optimizer, best, progress)
    # Ray hands back plain arrays, no tensors.
    state = {name: value.numpy() for name, value in best.items()}
    return {"state": state, "resumed_epochs": resumed} | vars(progress)


def _build(tuning: Tuning) -> PromptedCLIP | DistributedDataParallel:
    config = tuning.config
    source = checkpoints.resolve_clip(config.clip, config.storage)
    clip = load_clip(source.model, source.checkpoint, source.preprocess, seed=config.seed)
    torch.manual_seed(config.seed)  # the same first prompts on every worker
    return prepare_model(PromptedCLIP(clip, load_tokenizer(source.model), tuning.settings))


def _learned(model: PromptedCLIP | DistributedDataParallel) -> PromptedCLIP:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _logits(model: PromptedCLIP | DistributedDataParallel, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    tensors = {name: torch.as_tensor(np.array(value), device=get_device()) for name, value in batch.items()}
    image, text = model(tensors["tokens"], tensors["focus"], tensors.get("region_tokens"))
    return _learned(model).logits(image, text), tensors["target"]


def _train_epoch(
    model: PromptedCLIP | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    tuning: Tuning,
    epoch: int,
) -> float:
    config = tuning.config
    model.train()
    total = steps = 0.0
    for batch in rows.batches(config.train.batch_size, config.seed + epoch):
        logits, target = _logits(model, batch)
        loss = prompt_loss(logits, target, config.train.contrastive_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, steps = total + loss.item(), steps + 1
    total, steps = _sum_over_workers(total, steps)
    return total / steps


@torch.inference_mode()
def _validate(model: PromptedCLIP | DistributedDataParallel, rows: Rows, tuning: Tuning) -> tuple[float, float]:
    """Cross-entropy and accuracy over the validation rows, all of which every worker has."""
    model.eval()
    loss = right = count = 0.0
    for batch in rows.batches(tuning.config.train.batch_size):
        logits, target = _logits(_learned(model), batch)
        loss += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
        right += (logits.argmax(1) == target).sum().item()
        count += len(target)
    # Summed all the same: workers that differed in the last bit could disagree on when to stop.
    loss, right, count = _sum_over_workers(loss, right, count)
    return loss / count, right / count


def _sum_over_workers(*values: float) -> list[float]:
    if ray.train.get_context().get_world_size() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=get_device())
    torch.distributed.all_reduce(summed)
    return summed.tolist()


def _report(
    learned: PromptedCLIP, optimizer: torch.optim.Optimizer, best: dict[str, torch.Tensor], progress: Progress
) -> None:
    """Report the epoch; rank 0 adds the checkpoint."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(progress.history[-1])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(learned.learned_state(), folder / "learned.safetensors")
        save_file(best, folder / "best.safetensors")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "progress.json").write_text(json.dumps(vars(progress)))
        ray.train.report(progress.history[-1], checkpoint=Checkpoint.from_directory(folder))


def _restore(learned: PromptedCLIP, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, torch.Tensor]]:
    """The progress and best state of the last checkpoint, or of a beginning."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress(0, 0, float("inf"), []), learned.learned_state()
    with checkpoint.as_directory() as name:
        folder = Path(name)
        learned.load_learned(load_file(folder / "learned.safetensors"))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        progress = Progress(**json.loads((folder / "progress.json").read_text()))
        return progress, load_file(folder / "best.safetensors")
