"""The training loop of each worker of Ray Train.

Few rows: they are kept in memory, each fold of them is held out once, and a last round learns from all of them for as
many epochs as were best. Rows that do not fit into memory are streamed, with one fold held out, and that round is the
last. Either way no prediction that decides an epoch, the temperature or the threshold is of a row learned from.

What the frozen tower makes of a row above the cut is the same in every epoch: of rows in memory it is made once. Of a
row with several views one is learned from in each epoch, at random; the image itself is what is judged.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray.train
import torch
import torch.distributed
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model
from torch.nn.parallel import DistributedDataParallel

from medfocus.pipeline.config import Config
from medfocus.pipeline.models import model_files
from medfocus.pipeline.training.state import TrainingState
from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.tower import CachedTokens
from medfocus.stages.tuning import TrainingBatch, anneal, train_epoch
from medfocus.stages.weights import load_clip, load_tokenizer

# Rows a worker shuffles among where it streams; what is kept in memory is shuffled whole.
_SHUFFLED = 2048
# Columns of a row that are the same for all of its views.
_OF_A_ROW = ("target", "fold")

Columns = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TuningSpec:
    """What a worker needs to know.

    Args:
        config: settled.
        settings: of the learned part.
        clip_identity: of the CLIP that made the features.
        threads: of each worker.
        rows: all that are labelled.
        folds: number of parts where the rows are kept in memory, else 0.
    """

    config: Config
    settings: PromptSettings
    clip_identity: str
    threads: int
    rows: int
    folds: int

    @property
    def rounds(self) -> int:
        return self.folds + 1 if self.folds else 1


class Rows(Protocol):
    """A worker's rows of one part."""

    def batches(self, size: int, seed: int | None = None) -> Iterator[Tensors]:
        """The rows in batches as ``_remember`` makes them: by a seed shuffled, in any view; else in the first."""


class StreamedRows:
    """Rows that are read from storage in every epoch."""

    def __init__(self, name: str, learned: PromptedCLIP):
        self.shard = ray.train.get_dataset_shard(name)
        self.learned = learned

    def batches(self, size: int, seed: int | None = None) -> Iterator[Tensors]:
        shuffle = {} if seed is None else {"local_shuffle_buffer_size": max(size, _SHUFFLED)}
        views = Views(seed)
        for batch in self.shard.iter_batches(batch_size=size, batch_format="numpy", local_shuffle_seed=seed, **shuffle):
            yield _remember(self.learned, views.choose(batch))


class KeptRows:
    """Rows in memory."""

    def __init__(self, columns: Tensors):
        self.columns = columns

    def batches(self, size: int, seed: int | None = None) -> Iterator[Tensors]:
        count = len(self.columns["target"])
        views = Views(seed)
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        for start in range(0, count, size):
            yield views.choose(self.take(order[start : start + size]).columns)

    def take(self, chosen: np.ndarray) -> "KeptRows":
        return KeptRows({name: values[chosen] for name, values in self.columns.items()})


class Views:
    """Which view of each row is seen: any of them by a seed, the image itself without one."""

    def __init__(self, seed: int | None):
        self.random = None if seed is None else np.random.default_rng(seed)

    def choose(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Rows without their axis of views, the second of all columns but the class and the fold."""
        count, views = rows["focus"].shape[:2]
        chosen = np.zeros(count, int) if self.random is None else self.random.integers(views, size=count)
        each = np.arange(count)
        return {name: value if name in _OF_A_ROW else value[each, chosen] for name, value in rows.items()}


def _remember(learned: PromptedCLIP, columns: Columns) -> Tensors:
    """Rows as tensors on this worker's device, with what the frozen tower makes of their tokens in place of these."""
    tensors = {name: torch.as_tensor(np.array(value), device=get_device()) for name, value in columns.items()}
    for name in ("tokens", "region_tokens"):
        if name in tensors:
            tokens = tensors.pop(name)
            every = tokens.shape[:-2]  # rows, or rows and their views
            cls, memory = learned.cache_tokens(tokens.flatten(0, -3))
            tensors |= {f"{name} cls": cls.unflatten(0, every), f"{name} memory": memory.half().unflatten(0, every)}
    return tensors


class Parts:
    """What each round learns from and what it holds out."""

    def __init__(self, tuning: TuningSpec, learned: PromptedCLIP):
        self.folds, self.learned = tuning.folds, learned
        if self.folds:
            stream = ray.train.get_dataset_shard("rows")
            size = tuning.config.train.batch_size
            blocks = [
                {name: value.cpu() for name, value in _remember(learned, batch).items()}
                for batch in stream.iter_batches(batch_size=size, batch_format="numpy")
            ]
            self.rows = KeptRows({name: torch.cat([block[name] for block in blocks]) for name in blocks[0]})

    def of(self, number: int) -> tuple[Rows, Rows | None]:
        """Training rows, this worker's share, and held-out rows, the same for all; none in the last of many rounds."""
        if not self.folds:
            return StreamedRows("training", self.learned), StreamedRows("held_out", self.learned)
        fold = self.rows.columns["fold"].numpy()
        context = ray.train.get_context()
        chosen = np.flatnonzero(fold != number)
        # Shares of one size: workers wait for each other at every step.
        each = len(chosen) // context.get_world_size()
        training = self.rows.take(chosen[context.get_world_rank() :: context.get_world_size()][:each])
        return training, self.rows.take(np.flatnonzero(fold == number)) if number < self.folds else None


def tune(options: dict[str, Any]) -> dict[str, Any]:
    """Tune the prompts, round after round; every worker runs this.

    Returns:
        The learned state, the progress, and what the rounds said of their held-out rows.
    """
    tuning: TuningSpec = options["tuning"]
    torch.set_num_threads(tuning.threads)
    model = _build(tuning)
    learned = _learned(model)
    optimizer = _optimizer(learned, tuning)
    progress = TrainingState.beginning(learned.learned_state())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            progress = TrainingState.load(Path(folder), learned, optimizer)
    resumed = progress.epochs_done
    parts = Parts(tuning, learned)
    while True:
        _round(model, optimizer, parts.of(progress.round), tuning, progress)
        if progress.round + 1 == tuning.rounds:
            break
        progress.next_round()
        learned.load_learned(progress.initial)
        optimizer = _optimizer(learned, tuning)
    return progress.outcome() | {"resumed_epochs": resumed}


def _round(
    model: PromptedCLIP | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    parts: tuple[Rows, Rows | None],
    tuning: TuningSpec,
    progress: TrainingState,
) -> None:
    """Learn until the held-out loss no longer falls, or, with nothing held out, for as long as was best before."""
    train = tuning.config.train
    training, held_out = parts
    while not progress.ended(train.epochs, train.patience, alone=held_out is None):
        anneal(optimizer, progress.epoch / train.epochs)
        loss = _train_epoch(model, optimizer, training, tuning, progress.epoch)
        logits, targets = _judge(model, held_out, tuning) if held_out else (None, None)
        progress.add_epoch(loss, logits, targets, _learned(model).learned_state())
        _report(_learned(model), optimizer, progress)


def _build(tuning: TuningSpec) -> PromptedCLIP | DistributedDataParallel:
    config = tuning.config
    source = model_files.resolve_clip(config.clip, config.storage)
    model_files.check_identity(source, tuning.clip_identity, "clip")
    clip = load_clip(source.model, source.checkpoint, source.preprocess)
    torch.manual_seed(config.seed)  # the same first prompts on every worker
    return prepare_model(PromptedCLIP(clip, load_tokenizer(source.model), tuning.settings))


def _optimizer(learned: PromptedCLIP, tuning: TuningSpec) -> torch.optim.Optimizer:
    train = tuning.config.train
    return torch.optim.AdamW(learned.parameter_groups(train.learning_rate), weight_decay=train.weight_decay)


def _learned(model: PromptedCLIP | DistributedDataParallel) -> PromptedCLIP:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _shown(batch: Tensors) -> TrainingBatch:
    tensors = {name: value.to(get_device()) for name, value in batch.items()}
    seen = {
        name: CachedTokens(tensors[f"{name} cls"], tensors[f"{name} memory"].float())
        for name in ("tokens", "region_tokens")
        if f"{name} cls" in tensors
    }
    return TrainingBatch(seen["tokens"], tensors["focus"], seen.get("region_tokens"), tensors["target"])


def _logits(model: PromptedCLIP | DistributedDataParallel, shown: TrainingBatch) -> torch.Tensor:
    return _learned(model).logits(*model(shown.whole, shown.focus, shown.region))


def _train_epoch(
    model: PromptedCLIP | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    tuning: TuningSpec,
    epoch: int,
) -> float:
    config = tuning.config
    model.train()
    batches = map(_shown, rows.batches(config.train.batch_size, config.seed + epoch))
    prior = partial(_learned(model).prior, tuning.rows)
    done = train_epoch(partial(_logits, model), optimizer, batches, config.train.contrastive_weight, prior)
    total, steps = _sum_over_workers(*done)
    return total / steps


@torch.inference_mode()
def _judge(
    model: PromptedCLIP | DistributedDataParallel, rows: Rows, tuning: TuningSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [N, C] and targets int64 [N] of the held-out rows, all of which every worker has."""
    model.eval()
    shown = map(_shown, rows.batches(tuning.config.train.batch_size))
    parts = [(_logits(_learned(model), batch), batch.target) for batch in shown]
    logits, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    if ray.train.get_context().get_world_size() > 1:
        torch.distributed.broadcast(logits, 0)  # workers that differed in the last bit could disagree on when to stop
    return logits.cpu(), targets.cpu()


def _sum_over_workers(*values: float) -> list[float]:
    if ray.train.get_context().get_world_size() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=get_device())
    torch.distributed.all_reduce(summed)
    return summed.tolist()


def _report(learned: PromptedCLIP, optimizer: torch.optim.Optimizer, progress: TrainingState) -> None:
    """Report the epoch; rank 0 adds the checkpoint."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(progress.history[-1])
        return
    with tempfile.TemporaryDirectory() as folder:
        progress.save(Path(folder), learned, optimizer)
        ray.train.report(progress.history[-1], checkpoint=Checkpoint.from_directory(folder))
