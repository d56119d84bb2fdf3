import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor

from pipeline.config import SegmentSection
from stages.masks import bounding_box, decode_mask
from stages.segment import Candidates, Segment, point_grid
from starter.phantoms import draw


def stage(model, **settings) -> Segment:
    section = SegmentSection(**{"points_per_side": 3, "batch_size": 2} | settings)
    return Segment(model, **section.options)


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


def test_decoding_equals_the_package_s_own_predictor(starter_sam2) -> None:
    """All images and points at once, against ``SAM2ImagePredictor`` image by image."""
    images = batch(3)["pixels"]
    segment = stage(starter_sam2)
    points = segment.points[[0, 4, 7]]
    features = segment.encode(torch.from_numpy(images))
    logits, iou = segment.decode(features, points)

    predictor = SAM2ImagePredictor(starter_sam2)
    predictor._bb_feat_sizes = [(80, 80), (40, 40), (20, 20)]  # written down for 1024 pixels only
    predictor.set_image_batch([np.repeat(image, 3, axis=2) for image in images])
    clicks = [points.numpy()[:, None]] * 3
    _, expected_iou, expected_logits = predictor.predict_batch(clicks, [np.ones((3, 1))] * 3)
    assert np.allclose(iou, np.stack(expected_iou).reshape(3, -1), atol=1e-5)
    ours = logits.clamp(-32, 32).numpy()
    assert np.allclose(ours, np.stack(expected_logits).reshape(ours.shape), atol=1e-3)


@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_full_size_masks_equal_the_package_s_own(starter_sam2, margin: float) -> None:
    """The union at the stored size, against the predictor's own upscaling of the same masks."""
    segment = stage(starter_sam2, margin=margin)
    logits = torch.randn(1, 2, 64, 64).cumsum(-1)
    union = segment._union(Candidates(logits, torch.ones(1, 2), torch.zeros(1, 2, 2)), (123, 77))
    expected = SAM2ImagePredictor(starter_sam2)._transforms.postprocess_masks(logits, (123, 77)) > -margin
    assert np.array_equal(union, expected.any(1)[0].numpy())


def test_the_batch_does_not_change_the_masks(starter_sam2) -> None:
    together = stage(starter_sam2, batch_size=4, prompts_per_pass=512)(batch(4))
    apart = stage(starter_sam2, batch_size=1, prompts_per_pass=2)(batch(4))
    for row in range(4):
        one = decode_mask(together["mask_counts"][row], 200, 300 + row)
        other = decode_mask(apart["mask_counts"][row], 200, 300 + row)
        assert (one & other).sum() / max((one | other).sum(), 1) > 0.99
    assert np.allclose(together["mask_score"], apart["mask_score"], atol=1e-3)


def test_failed_rows_are_passed_by(starter_sam2) -> None:
    rows = batch(3)
    rows["error"][1] = "Undecodable"
    out = stage(starter_sam2)(rows)
    assert out["mask_counts"][1] == "" and out["mask_counts"][0] and out["mask_counts"][2]
    assert out["error"].tolist() == ["", "Undecodable", ""]


def test_no_region_means_the_whole_image_and_a_score_of_zero(starter_sam2) -> None:
    out = stage(starter_sam2, min_area=0.9998, max_area=0.9999)(batch(1))
    assert out["mask_score"][0] == 0
    assert decode_mask(out["mask_counts"][0], 200, 300).all()
    assert out["region_box"][0].tolist() == [0, 0, 1, 1]


def test_the_box_is_that_of_the_best_region(starter_sam2) -> None:
    """With one region and no margin the focus mask is that region; the box is its, but for a cell of the logits."""
    out = stage(starter_sam2, regions=1, margin=0.0)(batch(4))
    assert (out["mask_score"] > 0).any()
    for row in range(4):
        box = bounding_box(decode_mask(out["mask_counts"][row], 200, 300 + row))
        assert np.allclose(out["region_box"][row], box, atol=1.5 / 80)


def test_numbers_that_are_not_finite_fail_the_row(starter_sam2, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = stage(starter_sam2)
    encode = segment.encode

    def poisoned(pixels):
        features = encode(pixels)
        features.embedding[0] = float("nan")
        return features

    monkeypatch.setattr(segment, "encode", poisoned)
    out = segment(batch(2))
    assert out["error"].tolist() == ["NotFinite", ""]
    assert out["stage"][0] == "segment"


def blob(x: int, y: int, radius: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return torch.where((rows - y) ** 2 + (columns - x) ** 2 < radius**2, 8.0, -8.0)


def test_ranking_prefers_stable_masks_of_a_likely_area(starter_sam2) -> None:
    segment = stage(starter_sam2, prior_area=0.02, max_area=0.5)
    likely, large, unstable = blob(20, 20, 5), blob(32, 32, 16), blob(20, 20, 5) / 16
    whole = torch.full((64, 64), 8.0)
    score = segment._rank(torch.stack([likely, large, unstable, whole])[None], torch.full((1, 4), 0.9))[0]
    assert score[0] > score[1] > 0
    assert score[2] == 0 and score[3] == 0


def test_overlapping_candidates_count_once(starter_sam2) -> None:
    segment = stage(starter_sam2, regions=2, max_overlap=0.5)
    logits = torch.stack([blob(20, 20, 8), blob(21, 20, 8), blob(45, 45, 8), blob(10, 50, 8)])[None]
    chosen = segment._distinct(Candidates(logits, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.zeros(1, 4, 2)))
    assert chosen[0].tolist() == [True, False, True, False]


def test_a_candidate_far_below_the_best_is_no_region(starter_sam2) -> None:
    segment = stage(starter_sam2, regions=4, min_relative_score=0.5)
    logits = torch.stack([blob(20, 20, 8), blob(45, 45, 8), blob(10, 50, 8)])[None]
    chosen = segment._distinct(Candidates(logits, torch.tensor([[0.8, 0.41, 0.39]]), torch.zeros(1, 3, 2)))
    assert chosen[0].tolist() == [True, True, False]


def test_a_region_is_one_piece_without_holes(starter_sam2) -> None:
    segment = stage(starter_sam2, margin=2.0)
    ring = torch.where(blob(30, 30, 4) > 0, torch.tensor(-8.0), blob(30, 30, 9))
    spoiled = torch.where((blob(55, 10, 3) > 0) | (ring > 0), 8.0, -8.0)
    click = torch.tensor([[[38.0, 30.0]]]) * segment.size / 64
    (whole,) = segment._whole(Candidates(spoiled[None, None], torch.ones(1, 1), click))[0]
    assert torch.equal(whole > 0, blob(30, 30, 9) > 0)
    assert not (whole[:, 50:] > -segment.margin).any()  # the speck is no part of the focus mask either


def test_points_are_the_centres_of_cells() -> None:
    assert point_grid(2, 256).tolist() == [[64, 64], [192, 64], [64, 192], [192, 192]]
