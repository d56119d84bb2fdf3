from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch

from medfocus.pipeline.config import Config
from medfocus.pipeline.models import model_files
from medfocus.stages.weights import load_clip, load_sam2, read_state_dict
from medfocus.starter import pretrain, sam2_recipe
from medfocus.starter.phantoms import CLASSES, PRESETS, Phantom, draw
from medfocus.starter.pretrain import FILES, Phantoms, train


@pytest.mark.parametrize(
    ("name", "encoder_until", "decoder_until"), [("sam2", 1, 1), ("sam2", 0, 1), ("sam2", 0, 0), ("clip", None, None)]
)
def test_a_few_steps_lower_the_loss_and_resume_from_a_checkpoint(
    name: str, encoder_until: int | None, decoder_until: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = pretrain.RECIPES[name].Recipe
    if name == "sam2":  # each part of the recipe by itself
        monkeypatch.setattr(recipe, "encoder_until", encoder_until)
        monkeypatch.setattr(recipe, "decoder_until", decoder_until)
    monkeypatch.setattr(recipe, "batch_size", 8 if name == "clip" else 2)
    # One batch again and again, so that the loss falls within the few steps of a test.
    monkeypatch.setattr(RepeatedPhantoms, "count", recipe.batch_size)
    monkeypatch.setattr(pretrain, "Phantoms", RepeatedPhantoms)
    losses = train(name, steps=8, out=tmp_path, seed=0, device="cpu")
    assert len(losses) == 8
    assert sum(losses[-2:]) < sum(losses[:2])
    assert len(train(name, steps=9, out=tmp_path, seed=0, device="cpu")) == 1
    state = read_state_dict(tmp_path / FILES[name])
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())
    load = {"sam2": load_sam2, "clip": load_clip}[name]
    loaded = load(pretrain.RECIPES[name].ARCHITECTURE, tmp_path / FILES[name]).state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in state.items() if value.is_floating_point())
    # The last part of the recipe alone, from these weights.
    more = {"out": tmp_path / "next", "seed": 0, "device": "cpu", "start": tmp_path / FILES[name], "after": 0.9}
    assert train(name, steps=1, **more)[0] < losses[0]


class RepeatedPhantoms(Phantoms):
    """The first few phantoms of a training again and again."""

    count = 1

    def __iter__(self) -> Iterator[Phantom]:
        self.start = 0
        return cycle(list(islice(super().__iter__(), self.count)))


def test_the_mask_loss_equals_its_definition() -> None:
    """Against a plain computation of the best of three masks, one prompt at a time."""
    generator = torch.Generator().manual_seed(0)
    side = sam2_recipe.MASK_SIDE
    logits = torch.randn(2, 3, side, side, generator=generator)
    iou = torch.rand(2, 3, generator=generator)
    targets = (torch.rand(2, side, side, generator=generator) > 0.7).float()
    loss, best = sam2_recipe.mask_loss(logits, iou, targets)
    shapes, gaps = [], []
    for prompt in range(2):
        target = targets[prompt].double()
        costs = []
        for mask in range(3):
            probability = logits[prompt, mask].double().sigmoid()
            of_truth = torch.where(target > 0, probability, 1 - probability)
            focal = (-0.5 * (1 - of_truth) ** 2 * of_truth.log()).mean()
            dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
            costs.append(20 * focal + dice)
            inside, true = logits[prompt, mask] > 0, target > 0
            gaps.append((iou[prompt, mask] - (inside & true).sum() / (inside | true).sum()).abs())
        shapes.append(min(costs))
        assert best[prompt] == int(torch.stack(costs).argmin())
    expected = torch.stack(shapes).mean() + torch.stack(gaps).double().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_from_an_empty_target_only_the_iou_learns() -> None:
    logits = torch.randn(2, 3, sam2_recipe.MASK_SIDE, sam2_recipe.MASK_SIDE, requires_grad=True)
    iou = torch.full((2, 3), 0.4, requires_grad=True)
    targets = torch.zeros(2, sam2_recipe.MASK_SIDE, sam2_recipe.MASK_SIDE)
    loss, _ = sam2_recipe.mask_loss(logits, iou, targets)
    loss.backward()
    assert loss.item() == pytest.approx(0.4) and not logits.grad.any() and (iou.grad > 0).all()


def test_training_phantoms_are_not_those_of_the_demo() -> None:
    training = list(islice(Phantoms(0, 32, 0, True), 40))
    assert {phantom.label for phantom in training} == {*CLASSES, "no lesion"}
    assert {len(phantom.decoys) > 0 for phantom in training} == {True, False}  # both presets
    demo = {draw(index, size=32, preset=preset).image.tobytes() for index in range(40) for preset in PRESETS}
    assert not {phantom.image.tobytes() for phantom in training} & demo


def test_a_resumed_training_draws_the_phantoms_that_follow() -> None:
    first = [phantom.image.tobytes() for phantom in islice(Phantoms(0, 32, 0, True), 8)]
    assert [phantom.image.tobytes() for phantom in islice(Phantoms(0, 32, 5, True), 3)] == first[5:]
    assert len(set(first)) == 8


def test_the_shipped_models_are_small_and_run() -> None:
    config = Config()
    sources = [
        model_files.resolve_sam2(config.segment, config.storage),
        model_files.resolve_clip(config.clip, config.storage),
    ]
    assert sum(source.checkpoint.stat().st_size for source in sources) < 30 * 10**6
    sam2 = load_sam2(sources[0].model, sources[0].checkpoint)
    assert sam2.forward_image(torch.zeros(1, 3, 320, 320))["backbone_fpn"][-1].isfinite().all()
    clip = load_clip(sources[1].model, sources[1].checkpoint)
    assert clip.encode_image(torch.zeros(1, 3, 112, 112)).isfinite().all()
