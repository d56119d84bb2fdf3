"""The training loop that each worker of Ray Train runs.

Rows that fit into memory are kept there. Each fold of them is held out in a round of its own. A final round learns from
all rows, for the mean of the rounds' best numbers of epochs. Rows that do not fit into memory are streamed in a single
round, which holds out one fold. In both cases the held-out rows that decide the number of epochs, the temperature and
the threshold are never rows that the same round learned from.

The frozen tower's output for a row does not change between epochs. For rows in memory it is computed once. Where
features hold several views of a row, training draws one at random in each epoch; held-out rows use the image itself.
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
from medfocus.pipeline.training.state import HeldOutLogits, TrainingResult, TrainingState
from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.tower import CachedTokens
from medfocus.stages.tuning import TrainingBatch, anneal, train_epoch
from medfocus.stages.weights import load_clip, load_tokenizer

# Rows in the shuffle buffer of a worker that streams; rows in memory are shuffled as a whole.
_SHUFFLED = 2048
# Columns with one value a row; all others have an axis of views.
_COLUMNS_WITHOUT_VIEWS = ("target", "fold")

Columns = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]
TrainedModel = PromptedCLIP | DistributedDataParallel


@dataclass(frozen=True)
class TuningSpec:
    """What a worker receives from the driver.

    Args:
        config: configuration with resolved paths.
        settings: settings of the prompts.
        clip_identity: identity of the CLIP that made the features.
        threads: number of threads of each worker.
        rows: number of labelled rows.
        folds: number of folds where the rows are kept in memory; 0 where they are streamed.
    """

    config: Config
    settings: PromptSettings
    clip_identity: str
    threads: int
    rows: int
    folds: int

    @property
    def rounds(self) -> int:
        """Number of rounds: one for each fold and a final one, or a single one where rows are streamed."""
        return self.folds + 1 if self.folds else 1


class Rows(Protocol):
    """The training rows or the held-out rows of a worker."""

    def batches(self, size: int, seed: int | None = None) -> Iterator[Tensors]:
        """The rows in batches of tensors with the cached tokens in place of the tokens.

        Args:
            size: rows of a batch; the last one may be smaller.
            seed: shuffles the rows and draws a view of each; None keeps the order and takes the image itself.
        """


class StreamedRows:
    """Rows that are read from storage in every epoch.

    Args:
        name: name of the dataset.
        model: model whose frozen tower processes the tokens.
    """

    def __init__(self, name: str, model: PromptedCLIP):
        self.shard = ray.train.get_dataset_shard(name)
        self.model = model

    def batches(self, size: int, seed: int | None = None) -> Iterator[Tensors]:
        """See ``Rows``; shuffles within a buffer."""
        shuffle = {} if seed is None else {"local_shuffle_buffer_size": max(size, _SHUFFLED)}
        views = ViewSampler(seed)
        for batch in self.shard.iter_batches(batch_size=size, batch_format="numpy", local_shuffle_seed=seed, **shuffle):
            yield _cache_tokens(self.model, views.sample(batch))


class RowsInMemory:
    """Rows that are kept in memory with all of their views.

    Args:
        columns: tensors [N, ...] of a class and a fold, and [N, V, ...] of everything else.
    """

    def __init__(self, columns: Tensors):
        self.columns = columns

    def batches(self, size: int, seed: int | None = None) -> Iterator[Tensors]:
        """See ``Rows``; shuffles all rows."""
        count = len(self.columns["target"])
        views = ViewSampler(seed)
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        for start in range(0, count, size):
            yield views.sample(self.take(order[start : start + size]).columns)

    def take(self, rows: np.ndarray) -> "RowsInMemory":
        """The rows at the given positions, int64 [n]."""
        return RowsInMemory({name: values[rows] for name, values in self.columns.items()})


class ViewSampler:
    """Chooses a view of each row.

    Args:
        seed: seed of the draw among all views; None takes the first view, which is the image itself.
    """

    def __init__(self, seed: int | None):
        self.random = None if seed is None else np.random.default_rng(seed)

    def sample(self, columns: dict[str, Any]) -> dict[str, Any]:
        """One view of each row: columns [N, V, ...] become [N, ...]; class and fold stay [N]."""
        count, views = columns["focus"].shape[:2]
        view = np.zeros(count, int) if self.random is None else self.random.integers(views, size=count)
        row = np.arange(count)
        return {
            name: values if name in _COLUMNS_WITHOUT_VIEWS else values[row, view] for name, values in columns.items()
        }


class FoldRows:
    """The training rows and the held-out rows of each round.

    Args:
        spec: number of folds and size of a batch.
        model: model whose frozen tower processes the tokens.
    """

    def __init__(self, spec: TuningSpec, model: PromptedCLIP):
        self.folds, self.model = spec.folds, model
        if self.folds:
            stream = ray.train.get_dataset_shard("rows")
            blocks = [
                {name: values.cpu() for name, values in _cache_tokens(model, batch).items()}
                for batch in stream.iter_batches(batch_size=spec.config.train.batch_size, batch_format="numpy")
            ]
            self.rows = RowsInMemory({name: torch.cat([block[name] for block in blocks]) for name in blocks[0]})

    def split(self, number: int) -> tuple[Rows, Rows | None]:
        """The rows of a round.

        Args:
            number: number of the round, which is that of its held-out fold.

        Returns:
            This worker's share of the training rows, and the held-out rows, the same for all workers; None in the
            final round on all rows.
        """
        if not self.folds:
            return StreamedRows("training", self.model), StreamedRows("held_out", self.model)
        fold = self.rows.columns["fold"].numpy()
        context = ray.train.get_context()
        training = np.flatnonzero(fold != number)
        # All shares have the same size: workers wait for each other at every step.
        size = len(training) // context.get_world_size()
        share = training[context.get_world_rank() :: context.get_world_size()][:size]
        held_out = self.rows.take(np.flatnonzero(fold == number)) if number < self.folds else None
        return self.rows.take(share), held_out


def tune(options: dict[str, Any]) -> TrainingResult:
    """Tune the prompts in all rounds; every worker runs this.

    Args:
        options: ``tuning`` is the ``TuningSpec``.

    Returns:
        The learned state, the history, and the held-out logits of the rounds.

    Raises:
        MedFocusError: this node has another CLIP than the one that made the features.
    """
    spec: TuningSpec = options["tuning"]
    torch.set_num_threads(spec.threads)
    model = _build(spec)
    prompted = _unwrap(model)
    optimizer = _optimizer(prompted, spec)
    state = TrainingState.begin(prompted.learned_state())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = TrainingState.load(Path(folder), prompted, optimizer)
    resumed_epochs = state.total_epochs
    rows = FoldRows(spec, prompted)
    while True:
        _run_round(model, optimizer, rows.split(state.round), spec, state)
        if state.round + 1 == spec.rounds:
            break
        state.next_round()
        prompted.load_learned(state.initial)
        optimizer = _optimizer(prompted, spec)
    return state.result(resumed_epochs)


def _run_round(
    model: TrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: tuple[Rows, Rows | None],
    spec: TuningSpec,
    state: TrainingState,
) -> None:
    """Train until the held-out loss no longer falls; with nothing held out, for the other rounds' best number."""
    train = spec.config.train
    training, held_out = rows
    while not state.round_is_over(train.epochs, train.patience, holds_out=held_out is not None):
        anneal(optimizer, state.epoch / train.epochs)
        loss = _train_epoch(model, optimizer, training, spec, state.epoch)
        logits = _held_out_logits(model, held_out, spec) if held_out else None
        state.add_epoch(loss, logits, _unwrap(model).learned_state())
        _report(_unwrap(model), optimizer, state)


def _build(spec: TuningSpec) -> TrainedModel:
    """The model with its initial prompts, which are the same on every worker."""
    config = spec.config
    clip_files = model_files.resolve_clip(config.clip, config.storage)
    model_files.check_identity(clip_files, spec.clip_identity, "clip")
    clip = load_clip(clip_files.model, clip_files.checkpoint, clip_files.preprocess)
    torch.manual_seed(config.seed)
    return prepare_model(PromptedCLIP(clip, load_tokenizer(clip_files.model), spec.settings))


def _optimizer(model: PromptedCLIP, spec: TuningSpec) -> torch.optim.Optimizer:
    train = spec.config.train
    return torch.optim.AdamW(model.parameter_groups(train.learning_rate), weight_decay=train.weight_decay)


def _unwrap(model: TrainedModel) -> PromptedCLIP:
    """The model itself, where Ray has wrapped it for several workers."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _cache_tokens(model: PromptedCLIP, columns: Columns) -> Tensors:
    """The columns as tensors on this worker's device; the frozen tower's keys and values take the place of tokens."""
    tensors = {name: torch.as_tensor(np.array(values), device=get_device()) for name, values in columns.items()}
    for name in ("tokens", "region_tokens"):
        if name in tensors:
            tokens = tensors.pop(name)
            leading = tokens.shape[:-2]  # rows, or rows and views
            cls, memory = model.cache_tokens(tokens.flatten(0, -3))
            tensors |= {f"{name} cls": cls.unflatten(0, leading), f"{name} memory": memory.half().unflatten(0, leading)}
    return tensors


def _training_batch(columns: Tensors) -> TrainingBatch:
    """A batch of ``Rows`` as the model takes it, on this worker's device."""
    tensors = {name: values.to(get_device()) for name, values in columns.items()}
    cached = {
        name: CachedTokens(tensors[f"{name} cls"], tensors[f"{name} memory"].float())
        for name in ("tokens", "region_tokens")
        if f"{name} cls" in tensors
    }
    return TrainingBatch(cached["tokens"], tensors["focus"], cached.get("region_tokens"), tensors["target"])


def _logits(model: TrainedModel, batch: TrainingBatch) -> torch.Tensor:
    return _unwrap(model).logits(*model(batch.whole, batch.focus, batch.region))


def _train_epoch(
    model: TrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    spec: TuningSpec,
    epoch: int,
) -> float:
    """Train one epoch; returns the mean loss of the batches of all workers."""
    config = spec.config
    model.train()
    batches = map(_training_batch, rows.batches(config.train.batch_size, config.seed + epoch))
    prior = partial(_unwrap(model).prior, spec.rows)
    loss, steps = train_epoch(partial(_logits, model), optimizer, batches, config.train.contrastive_weight, prior)
    total_loss, total_steps = _sum_over_workers(loss, steps)
    return total_loss / total_steps


@torch.inference_mode()
def _held_out_logits(model: TrainedModel, rows: Rows, spec: TuningSpec) -> HeldOutLogits:
    """Logits and classes of the held-out rows, on the CPU; every worker has all of these rows."""
    model.eval()
    batches = map(_training_batch, rows.batches(spec.config.train.batch_size))
    predictions = [(_logits(_unwrap(model), batch), batch.target) for batch in batches]
    logits, targets = (torch.cat(column) for column in zip(*predictions, strict=True))
    if ray.train.get_context().get_world_size() > 1:
        torch.distributed.broadcast(
            logits, 0
        )  # a difference in the last bit could let workers stop at different epochs
    return HeldOutLogits(logits.cpu(), targets.cpu())


def _sum_over_workers(*values: float) -> list[float]:
    if ray.train.get_context().get_world_size() == 1:
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=get_device())
    torch.distributed.all_reduce(totals)
    return totals.tolist()


def _report(model: PromptedCLIP, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Report the latest epoch to Ray Train; rank 0 adds the checkpoint."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(state.history[-1])
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder), model, optimizer)
        ray.train.report(state.history[-1], checkpoint=Checkpoint.from_directory(folder))
