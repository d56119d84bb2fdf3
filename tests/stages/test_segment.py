from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor

from benchmarks.starter import fit_to
from benchmarks.starter import iou as iou_of
from medfocus.pipeline.config import SegmentSection
from medfocus.stages import segment as segment_module
from medfocus.stages.batched_sam2 import click_tokens, draw_masks
from medfocus.stages.masks import bounding_box, decode_mask
from medfocus.stages.regions import Candidates, keep_main_pieces, score_masks, select_regions, union_mask
from medfocus.stages.segment import Segment, point_grid, spread_order
from medfocus.stages.segment_settings import SegmentSettings
from medfocus.stages.weights import load_sam2
from medfocus.starter.phantoms import draw

STARTER = Path(__file__).parents[2] / "starter" / "sam2"


def settings(**changes) -> SegmentSettings:
    return SegmentSection(**{"points_per_side": 3, "batch_size": 2} | changes).settings


def stage(model, **changes) -> Segment:
    return Segment(model, settings(**changes))


def batch(count: int, size: int = 320) -> dict:
    pixels = np.stack([draw(index, size=size).image for index in range(count)])[..., None]
    empty = np.full(count, "", object)
    return {
        "image_id": np.array([str(index) for index in range(count)], object),
        "pixels": pixels,
        "height": np.full(count, 200, np.int32),
        "width": np.arange(300, 300 + count).astype(np.int32),
        "stage": empty.copy(),
        "error": empty.copy(),
        "message": empty.copy(),
    }


def predictor(model) -> SAM2ImagePredictor:
    package = SAM2ImagePredictor(model)
    fit_to(package, model.image_size)
    return package


def by_the_package(model, images: np.ndarray, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, P, 3, h, w] and predicted IoU [B, P, 3], image by image."""
    package = predictor(model)
    package.set_image_batch([np.repeat(image, 3, axis=2) for image in images])
    clicks = [points.numpy()[:, None]] * len(images)
    _, iou, logits = package.predict_batch(clicks, [np.ones((len(points), 1))] * len(images))
    return torch.from_numpy(np.stack(logits)), torch.from_numpy(np.stack(iou))


@torch.inference_mode()
@pytest.mark.parametrize("size", [None, 224])
def test_decoding_equals_the_package_s_own_predictor(size: int | None) -> None:
    """All images and points at once, against ``SAM2ImagePredictor`` image by image, at the model's own size or not."""
    model = load_sam2(STARTER, STARTER / "model.safetensors", image_size=size)
    assert model.image_size == (size or 320)
    images = batch(3, model.image_size)["pixels"]
    segment = stage(model)
    points = segment.points[[0, 4, 7]]
    features = segment.encode(torch.from_numpy(images))
    tokens = click_tokens(model, features, points)
    image, click = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    logits = draw_masks(model, features, tokens, image.flatten(), click.flatten())

    expected_logits, expected_iou = by_the_package(model, images, points)
    assert torch.allclose(tokens.iou, expected_iou, atol=1e-5)
    assert torch.allclose(logits.unflatten(0, (3, 3)).clamp(-32, 32), expected_logits, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("relative", [0.0, 0.2])
def test_skipped_masks_do_not_change_the_regions(starter_sam2, monkeypatch, relative: float) -> None:
    """The same regions as from all masks of all points, chosen in float64 by hand."""
    clicks_drawn = []

    def count_and_draw(model, features, tokens, images, clicks):
        clicks_drawn.append(len(clicks))
        return draw_masks(model, features, tokens, images, clicks)

    monkeypatch.setattr(segment_module, "draw_masks", count_and_draw)
    images = batch(4)["pixels"]
    segment = stage(starter_sam2, points_per_side=8, min_relative_score=relative, prompts_per_pass=16)
    regions_of_images = segment.find(images)
    assert sum(clicks_drawn) == 4 * 64 if relative == 0.0 else sum(clicks_drawn) < 4 * 64 / 2
    logits, iou = by_the_package(starter_sam2, images, segment.points)
    for image, regions in enumerate(regions_of_images):
        masks = logits[image].flatten(0, 1)
        drawn = (masks > 0).numpy()
        score = scores_by_definition(segment.settings, masks, iou[image].flatten())
        expected: list[int] = []
        for index in np.argsort(-score):
            overlaps = [iou_of(drawn[index], drawn[other]) > segment.settings.max_overlap for other in expected]
            if score[index] > 0 and score[index] >= relative * score.max() and not any(overlaps):
                expected.append(index)
        expected = expected[: segment.settings.regions]
        assert np.allclose(regions.score, score[expected], atol=1e-4)
        assert torch.equal(regions.clicks, segment.points[torch.tensor(expected) // 3])


@torch.inference_mode()
def test_a_bfloat16_encoder_finds_the_same_masks(starter_sam2, monkeypatch) -> None:
    """What the encoder does on a GPU, here on the CPU."""
    rows, segment = batch(8), stage(starter_sam2, points_per_side=8)
    in_float32 = segment(rows)["mask_counts"]
    forward = starter_sam2.forward_image

    def forward_in_bfloat16(images):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(images)

    monkeypatch.setattr(starter_sam2, "forward_image", forward_in_bfloat16)
    in_bfloat16 = segment(rows)["mask_counts"]
    masks = [
        [decode_mask(counts, 200, 300 + row) for row, counts in enumerate(column)]
        for column in (in_float32, in_bfloat16)
    ]
    assert all(0 < mask.mean() < 0.5 for mask in masks[0])  # no image falls back to the whole
    assert np.mean([iou_of(one, other) for one, other in zip(*masks, strict=True)]) > 0.99


def scores_by_definition(limits: SegmentSettings, logits: torch.Tensor, iou: torch.Tensor) -> np.ndarray:
    scores = np.zeros(len(logits))
    for index, (mask, predicted) in enumerate(zip(logits.double().numpy(), iou.double().numpy(), strict=True)):
        area, stability = (mask > 0).mean(), (mask > 1).sum() / max((mask > -1).sum(), 1)
        if limits.min_area <= area <= limits.max_area and stability >= limits.min_stability:
            distance = np.log(area / limits.prior_area) / limits.prior_spread
            scores[index] = predicted * stability * np.exp(-(distance**2) / 2)
    return scores


def candidates(logits: torch.Tensor, score: list[float], clicks: torch.Tensor | None = None) -> Candidates:
    clicks = torch.zeros(len(score), 2) if clicks is None else clicks
    return Candidates(torch.zeros(len(score), dtype=torch.long), logits, torch.tensor(score), clicks)


@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_full_size_masks_equal_the_package_s_own(starter_sam2, margin: float) -> None:
    """The union at the image's size, against the predictor's own upscaling of the same masks."""
    logits = torch.randn(2, 64, 64).cumsum(-1)
    union = union_mask(candidates(logits, [1.0, 1.0]), margin, 123, 77)
    expected = predictor(starter_sam2)._transforms.postprocess_masks(logits[None], (123, 77)) > -margin
    assert np.array_equal(union, expected.any(1)[0].numpy())


def test_masks_do_not_depend_on_the_batch(starter_sam2) -> None:
    together = stage(starter_sam2, batch_size=4, prompts_per_pass=512)(batch(4))
    apart = stage(starter_sam2, batch_size=1, prompts_per_pass=2)(batch(4))
    for row in range(4):
        one = decode_mask(together["mask_counts"][row], 200, 300 + row)
        other = decode_mask(apart["mask_counts"][row], 200, 300 + row)
        assert (one & other).sum() / max((one | other).sum(), 1) > 0.99
    assert np.allclose(together["mask_score"], apart["mask_score"], atol=1e-3)


def test_failed_rows_are_skipped(starter_sam2) -> None:
    rows = batch(3)
    rows["error"][1] = "Undecodable"
    out = stage(starter_sam2)(rows)
    assert out["mask_counts"][1] == "" and out["mask_counts"][0] and out["mask_counts"][2]
    assert out["error"].tolist() == ["", "Undecodable", ""]


def test_an_image_without_a_region_gets_the_whole_image_and_score_zero(starter_sam2) -> None:
    out = stage(starter_sam2, min_area=0.9998, max_area=0.9999)(batch(1))
    assert out["mask_score"][0] == 0
    assert decode_mask(out["mask_counts"][0], 200, 300).all()
    assert out["region_box"][0].tolist() == [0, 0, 1, 1]


def test_the_box_is_that_of_the_best_region(starter_sam2) -> None:
    """With one region and no margin the focus mask is that region; its box differs by at most a pixel of the logits."""
    out = stage(starter_sam2, regions=1, margin=0.0)(batch(4))
    assert (out["mask_score"] > 0).all()
    for row in range(4):
        box = bounding_box(decode_mask(out["mask_counts"][row], 200, 300 + row))
        assert np.allclose(out["region_box"][row], box, atol=1.5 / 80)


def test_a_row_with_values_that_are_not_finite_fails(starter_sam2, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = stage(starter_sam2)
    encode = segment.encode

    def encode_with_nan(pixels):
        features = encode(pixels)
        features.embedding[0] = float("nan")
        return features

    monkeypatch.setattr(segment, "encode", encode_with_nan)
    out = segment(batch(2))
    assert out["error"].tolist() == ["NotFinite", ""]
    assert out["stage"][0] == "segment"


def blob(x: int, y: int, radius: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return torch.where((rows - y) ** 2 + (columns - x) ** 2 < radius**2, 8.0, -8.0)


def test_scores_prefer_stable_masks_of_a_likely_area() -> None:
    likely, large, unstable = blob(20, 20, 5), blob(32, 32, 16), blob(20, 20, 5) / 16
    whole = torch.full((64, 64), 8.0)
    limits = settings(prior_area=0.02, max_area=0.5)
    score = score_masks(torch.stack([likely, large, unstable, whole]), torch.full((4,), 0.9), limits)
    assert score[0] > score[1] > 0
    assert score[2] == 0 and score[3] == 0


def test_of_overlapping_candidates_the_best_is_selected() -> None:
    logits = torch.stack([blob(20, 20, 8), blob(21, 20, 8), blob(45, 45, 8), blob(10, 50, 8)])
    selected = select_regions(candidates(logits, [0.9, 0.8, 0.7, 0.6]), settings(regions=2, max_overlap=0.5))
    assert np.allclose(selected.score, [0.9, 0.7])


def test_a_candidate_far_below_the_best_is_dropped() -> None:
    logits = torch.stack([blob(20, 20, 8), blob(45, 45, 8), blob(10, 50, 8)])
    selected = select_regions(candidates(logits, [0.8, 0.41, 0.39]), settings(regions=4, min_relative_score=0.5))
    assert np.allclose(selected.score, [0.8, 0.41])


def test_a_region_is_one_piece_without_holes() -> None:
    ring = torch.where(blob(30, 30, 4) > 0, torch.tensor(-8.0), blob(30, 30, 9))
    with_speck = torch.where((blob(55, 10, 3) > 0) | (ring > 0), 8.0, -8.0)
    click = torch.tensor([[38.0, 30.0]]) * 320 / 64
    (piece,) = keep_main_pieces(candidates(with_speck[None], [1.0], click), 2.0, 320).logits
    assert torch.equal(piece > 0, blob(30, 30, 9) > 0)
    assert not (piece[:, 50:] > -2.0).any()  # the speck is not in the margin either


def test_the_settings_come_from_the_configuration_which_alone_has_defaults() -> None:
    section = SegmentSection(points_per_side=4, prompts_per_pass=7)
    values = section.model_dump(exclude={"model", "weights", "sha256", "image_size"})
    assert asdict(section.settings) == values and values["points_per_side"] == 4
    assert all(field.default is MISSING for field in fields(SegmentSettings))


def test_points_are_the_centres_of_cells() -> None:
    assert point_grid(2, 256).tolist() == [[64, 64], [192, 64], [64, 192], [192, 192]]


@pytest.mark.parametrize("per_side", [1, 3, 10])
def test_the_spread_order_holds_each_point_once_and_its_first_points_lie_apart(per_side: int) -> None:
    grid = point_grid(per_side, 320)
    spread = spread_order(grid)
    assert sorted(spread.tolist()) == sorted(grid.tolist())
    if per_side == 10:  # a tenth of the points falls into each quarter of the image
        assert {(x > 160, y > 160) for x, y in spread[:10].tolist()} == {
            (a, b) for a in (False, True) for b in (False, True)
        }
