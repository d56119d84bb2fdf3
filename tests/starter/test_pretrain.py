from pathlib import Path

import pytest
import torch

from medfocus.pipeline.config import Config
from medfocus.pipeline.models import model_files
from medfocus.stages.weights import load_clip, load_sam2, read_state_dict
from medfocus.starter import pretrain, sam2_recipe
from medfocus.starter.phantoms import draw
from medfocus.starter.pretrain import FILES, Phantoms, train


@pytest.mark.parametrize(
    ("name", "seeing", "pointing"), [("sam2", 1, 1), ("sam2", 0, 1), ("sam2", 0, 0), ("clip", None, None)]
)
def test_a_few_steps_lower_the_loss_and_go_on_from_a_checkpoint(
    name: str, seeing: int | None, pointing: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seeing is not None:  # each of SAM2's parts by itself
        monkeypatch.setattr(sam2_recipe, "_SEEING", seeing)
        monkeypatch.setattr(sam2_recipe, "_POINTING", pointing)
    monkeypatch.setattr(pretrain.RECIPES[name].Recipe, "batch_size", 8 if name == "clip" else 2)
    # One batch again and again: what must fall falls, in steps that a test can wait for.
    monkeypatch.setattr(pretrain, "_batches", lambda recipe, seed, done: _same(recipe))
    losses = train(name, steps=8, out=tmp_path, seed=0, device="cpu")
    assert len(losses) == 8
    assert sum(losses[-2:]) < sum(losses[:2])
    assert len(train(name, steps=9, out=tmp_path, seed=0, device="cpu")) == 1
    state = read_state_dict(tmp_path / FILES[name])
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    load = {"sam2": load_sam2, "clip": load_clip}[name]
    loaded = load(pretrain.RECIPES[name].ARCHITECTURE, tmp_path / FILES[name]).state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items() if value.is_floating_point())
    # Beginning with these weights, the last part of the recipe alone.
    more = {"out": tmp_path / "next", "seed": 0, "device": "cpu", "start": tmp_path / FILES[name], "after": 0.9}
    assert train(name, steps=1, **more)[0] < losses[0]


def _same(recipe):
    stream = iter(Phantoms(0, recipe.image_size, 0, recipe.decoys))
    batch = [next(stream) for _ in range(recipe.batch_size)]
    while True:
        yield batch


def test_the_mask_loss_equals_its_definition() -> None:
    """Against a plain computation of the best of three masks, one prompt at a time."""
    generator = torch.Generator().manual_seed(0)
    side = sam2_recipe._COMPARED
    logits = torch.randn(2, 3, side, side, generator=generator)
    iou = torch.rand(2, 3, generator=generator)
    targets = (torch.rand(2, side, side, generator=generator) > 0.7).float()
    found, best = sam2_recipe._mask_loss(logits, iou, targets)
    shapes, gaps = [], []
    for prompt in range(2):
        target = targets[prompt].double()
        costs = []
        for mask in range(3):
            chance = logits[prompt, mask].double().sigmoid()
            right = torch.where(target > 0, chance, 1 - chance)
            focal = (-0.5 * (1 - right) ** 2 * right.log()).mean()
            dice = 1 - (2 * (chance * target).sum() + 1) / (chance.sum() + target.sum() + 1)
            costs.append(20 * focal + dice)
            inside, true = logits[prompt, mask] > 0, target > 0
            gaps.append((iou[prompt, mask] - (inside & true).sum() / (inside | true).sum()).abs())
        shapes.append(min(costs))
        assert best[prompt] == int(torch.stack(costs).argmin())
    expected = torch.stack(shapes).mean() + torch.stack(gaps).double().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_an_empty_target_teaches_no_shape_only_that_its_iou_is_zero() -> None:
    logits = torch.randn(2, 3, sam2_recipe._COMPARED, sam2_recipe._COMPARED, requires_grad=True)
    iou = torch.full((2, 3), 0.4, requires_grad=True)
    targets = torch.zeros(2, sam2_recipe._COMPARED, sam2_recipe._COMPARED)
    loss, _ = sam2_recipe._mask_loss(logits, iou, targets)
    loss.backward()
    assert loss.item() == pytest.approx(0.4) and not logits.grad.any() and (iou.grad > 0).all()


def test_training_phantoms_are_none_of_the_demo_s() -> None:
    stream = iter(Phantoms(0, 32, 0, True))
    drawn = [next(stream) for _ in range(20)]
    assert {phantom.label for phantom in drawn} > {"solid mass"}
    shown = [draw(index, size=32).image.tobytes() for index in range(100)]
    assert not {phantom.image.tobytes() for phantom in drawn} & set(shown)


def test_what_ships_is_small_and_loads() -> None:
    config = Config()
    sources = [
        model_files.resolve_sam2(config.segment, config.storage),
        model_files.resolve_clip(config.clip, config.storage),
    ]
    assert sum(source.checkpoint.stat().st_size for source in sources) < 30 * 10**6
    load_sam2(sources[0].model, sources[0].checkpoint)
    load_clip(sources[1].model, sources[1].checkpoint)
