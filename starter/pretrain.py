"""``python -m medfocus.starter.pretrain sam2|clip``: train a starter model on phantoms, on CPU or one GPU.

Phantoms are drawn as they are needed, each once. A checkpoint is written now and then; the same call goes on from it.
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
FILES = {"sam2": "model.safetensors", "clip": "open_clip_model.safetensors"}
# Phantoms of training and of tests are drawn from seeds that no other use has.
TRAINING_SEED = 1_000_000
_WARM_UP, _STEPS_BETWEEN_CHECKPOINTS = 0.03, 100
_HEALTHY = 0.1


class Phantoms(IterableDataset[Phantom]):
    """Phantoms without end, both presets in turn, from an index on; workers share them out."""

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
    """Train for a number of steps and write the weights; returns the loss of each step of this call.

    Args:
        name: ``sam2`` or ``clip``.
        steps: in all, those of earlier calls with a checkpoint in ``out`` included.
        out: folder for the weights and the checkpoint.
        seed: of the weights and the phantoms.
        device: ``cpu`` or ``cuda``.
        start: weights of an earlier training to begin with.
        after: share of the recipe that these weights have behind them; the steps are the rest of it.
    """
    torch.manual_seed(seed)
    recipe = RECIPES[name].Recipe(device, seed, start)
    optimizer = torch.optim.AdamW(recipe.parameters, lr=recipe.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    checkpoint = out / f"{name}-checkpoint.pt"
    done = _resume(checkpoint, recipe, optimizer)
    batches = _batches(recipe, seed, done)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(done, steps):
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


def _batches(recipe: Any, seed: int, done: int) -> Iterator[list[Phantom]]:
    phantoms = Phantoms(seed, recipe.image_size, done * recipe.batch_size, recipe.decoys)
    workers = max(0, (os.cpu_count() or 1) - 2)
    return iter(DataLoader(phantoms, recipe.batch_size, num_workers=workers, collate_fn=list))


def _save(path: Path, recipe: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    parts = {"model": recipe.model.state_dict(), "seeing": recipe.seeing.state_dict()}
    torch.save({**parts, "optimizer": optimizer.state_dict(), "step": step}, draft)
    draft.replace(path)


def _resume(path: Path, recipe: Any, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint in place; returns the steps it has done, 0 where there is none."""
    if not path.exists():
        return 0
    content = torch.load(path, map_location=recipe.device, weights_only=True)
    recipe.model.load_state_dict(content["model"])
    recipe.seeing.load_state_dict(content["seeing"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m medfocus.starter.pretrain", description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--steps", type=int, required=True, help="steps in all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights of an earlier training to begin with")
    parser.add_argument("--after", type=float, default=0.0, help="share of the recipe that these have behind them")
    call = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"steps": call.steps, "out": call.out, "seed": call.seed, "start": call.start, "after": call.after}
    train(call.model, device=device, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
