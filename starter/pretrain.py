"""``python -m medfocus.starter.pretrain sam2|clip``: train a starter model on phantoms, on CPU or one GPU.

Each phantom is drawn when it is needed, and used once. A checkpoint is written every hundred steps; the same call
resumes from it.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from medfocus.starter import clip_recipe, sam2_recipe
from medfocus.starter.phantoms import PRESETS, Phantom, draw

RECIPES = {"sam2": sam2_recipe, "clip": clip_recipe}
"""The module with the recipe of each model."""
FILES = {"sam2": "model.safetensors", "clip": "open_clip_model.safetensors"}
"""The name of the weights file of each model."""
TRAINING_SEED = 1_000_000
"""Added to the seeds of training phantoms, so that no test or benchmark draws the same ones."""
# Share of the steps in which the learning rate rises.
_WARM_UP = 0.03
_STEPS_BETWEEN_CHECKPOINTS = 100
# Share of the phantoms without a lesion.
_HEALTHY = 0.1


class Phantoms(IterableDataset[Phantom]):
    """An endless stream of phantoms, alternately of both presets; each worker draws a share of them.

    Args:
        seed: seed of the training.
        size: side in pixels.
        start: index of the first phantom.
        decoys: whether the phantoms have decoys.
    """

    def __init__(self, seed: int, size: int, start: int, decoys: bool):
        self.seed, self.size, self.start, self.decoys = seed, size, start, decoys

    def __iter__(self) -> Iterator[Phantom]:
        worker = get_worker_info()
        step, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        index = self.start + offset
        while True:
            preset = PRESETS[index // len(PRESETS) % len(PRESETS)]
            seed = TRAINING_SEED + self.seed
            yield draw(index, seed=seed, preset=preset, size=self.size, healthy=_HEALTHY, decoys=self.decoys)
            index += step


def train(
    name: str, *, steps: int, out: Path, seed: int, device: str, start: Path | None = None, after: float = 0.0
) -> list[float]:
    """Train a starter model and write its weights.

    Args:
        name: ``sam2`` or ``clip``.
        steps: total steps, including those of earlier calls with a checkpoint in ``out``.
        out: folder of the weights and the checkpoint.
        seed: seed of the weights and the phantoms.
        device: ``cpu`` or ``cuda``.
        start: weights of an earlier training to start from; None starts from random weights.
        after: share of the recipe that these weights have passed already, 0..1; the steps are the rest of it.

    Returns:
        The loss of each step of this call.
    """
    torch.manual_seed(seed)
    recipe = RECIPES[name].Recipe(device, seed, start)
    optimizer = torch.optim.AdamW(recipe.parameters, lr=recipe.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    checkpoint = out / f"{name}-checkpoint.pt"
    first_step = _resume(checkpoint, recipe, optimizer)
    batches = _batches(recipe, seed, first_step)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(first_step, steps):
        share = after + (1 - after) * step / steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1, step / steps / _WARM_UP) * 0.5 * (1 + cos(pi * share))
        loss = recipe.loss(next(batches), share)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(recipe.parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % _STEPS_BETWEEN_CHECKPOINTS == 0 or step + 1 == steps:
            _save(checkpoint, recipe, optimizer, step + 1)
            recent = losses[-_STEPS_BETWEEN_CHECKPOINTS:]
            rate = len(losses) * recipe.batch_size / (time.monotonic() - started)
            print(f"step {step + 1}/{steps} loss {sum(recent) / len(recent):.4f} {rate:.1f} images/s", flush=True)
    save_file(recipe.state(), out / FILES[name])
    return losses


def _batches(recipe: Any, seed: int, first_step: int) -> Iterator[list[Phantom]]:
    """Batches of phantoms from a step on."""
    phantoms = Phantoms(seed, recipe.image_size, first_step * recipe.batch_size, recipe.decoys)
    workers = max(0, (os.cpu_count() or 1) - 2)
    return iter(DataLoader(phantoms, recipe.batch_size, num_workers=workers, collate_fn=list))


def _save(path: Path, recipe: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint after a number of steps; an interrupted write leaves the previous one in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    parts = {"model": recipe.model.state_dict(), "dense_head": recipe.dense_head.state_dict()}
    torch.save({**parts, "optimizer": optimizer.state_dict(), "step": step}, draft)
    draft.replace(path)


def _resume(path: Path, recipe: Any, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint; returns the number of its steps, 0 where there is none."""
    if not path.exists():
        return 0
    content = torch.load(path, map_location=recipe.device, weights_only=True)
    recipe.model.load_state_dict(content["model"])
    recipe.dense_head.load_state_dict(content["dense_head"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])


def main() -> int:
    """Train the model that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m medfocus.starter.pretrain", description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--steps", type=int, required=True, help="total steps")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights of an earlier training to start from")
    parser.add_argument("--after", type=float, default=0.0, help="share of the recipe that these weights have passed")
    call = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"steps": call.steps, "out": call.out, "seed": call.seed, "start": call.start, "after": call.after}
    train(call.model, device=device, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
