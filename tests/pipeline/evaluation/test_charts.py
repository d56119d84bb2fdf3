"""Charts: what the figures draw is the data, and the PNG files can be read."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from medfocus.pipeline.evaluation import charts

COUNTS = np.array([[7, 2, 1], [0, 0, 0], [3, 0, 9]])
CLASSES = ("solid_mass", "cyst", "cost in $ or $")
CONFIDENCE = np.array([np.nan, 0.35, 0.55, np.nan, 0.9])
ACCURACY = np.array([np.nan, 0.5, 0.4, np.nan, 1.0])
ROWS = np.array([0.0, 4.0, 10.0, 0.0, 30.0])


def pixels(figure: Figure, path: Path) -> np.ndarray:
    """The figure's PNG file, uint8 [H, W, 3]; its size is that of the figure at 150 dots an inch."""
    charts.save(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == pytest.approx(figure.get_size_inches() * 150, abs=1)
        return np.asarray(image.convert("RGB"))


def test_the_confusion_matrix_draws_the_counts_and_shades_their_shares() -> None:
    figure = charts.confusion_figure(COUNTS, CLASSES)
    axes, colorbar = figure.axes
    cells = {text.get_position(): text for text in axes.texts}
    assert {place: text.get_text() for place, text in cells.items()} == {
        (column, row): str(COUNTS[row, column]) for row in range(3) for column in range(3)
    }
    (image,) = axes.images
    assert np.allclose(image.get_array(), [[0.7, 0.2, 0.1], [0, 0, 0], [0.25, 0, 0.75]])
    assert image.get_clim() == (0, 1)
    dark = {place for place, text in cells.items() if to_rgba(text.get_color()) == to_rgba("white")}
    assert dark == {(0, 0), (2, 2)}  # the only shares above one half
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "Confusion matrix, 22 images" and colorbar.get_ylabel() == "share of the true class"
    names = ["solid mass", "cyst", r"cost in \$ or \$"]
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert [text.get_text() for text in figure.texts] == ["MedFocus, research use only"]


@pytest.mark.parametrize(("count", "numbered"), [(2, True), (40, True), (41, False), (300, False)])
def test_many_classes_have_small_cells_without_numbers(count: int, numbered: bool) -> None:
    counts = np.eye(count, dtype=int)
    figure = charts.confusion_figure(counts, [f"class {index}" for index in range(count)])
    assert len(figure.axes[0].texts) == (count**2 if numbered else 0)
    assert max(figure.get_size_inches()) <= 25
    assert np.array_equal(figure.axes[0].images[0].get_array(), counts)


def test_the_reliability_diagram_draws_the_filled_bins() -> None:
    figure = charts.reliability_figure(CONFIDENCE, ACCURACY, ROWS, 0.1234)
    curve, histogram = figure.axes
    model = next(line for line in curve.lines if line.get_marker() == "o")
    assert model.get_xydata().tolist() == [[0.35, 0.5], [0.55, 0.4], [0.9, 1.0]]
    (reference,) = [line for line in curve.lines if line is not model]
    assert reference.get_xydata().tolist() == [[0, 0], [1, 1]]
    labels = [text.get_text() for text in curve.get_legend().get_texts()]
    assert labels == ["Perfectly calibrated", "model, calibration error 0.123"]
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in histogram.patches] == [
        (pytest.approx(0.2 * index), pytest.approx(0.2), height) for index, height in enumerate(ROWS)
    ]
    assert (curve.get_ylim(), histogram.get_xlim()) == ((0, 1), (0, 1))
    assert (curve.get_ylabel(), histogram.get_xlabel(), histogram.get_ylabel()) == ("accuracy", "confidence", "images")
    assert curve.get_xlabel() == ""
    assert [text.get_text() for text in figure.texts] == ["MedFocus, research use only"]


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_results_show_each_image_with_the_outline_of_its_mask(count: int) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (20, 30) if index % 2 else (20, 30, 3), np.uint8) for index in range(count)]
    masks = [np.zeros((20, 30), bool) for _ in range(count)]
    for index, mask in enumerate(masks):
        mask[5:15, 5 : 10 + index] = True
    figure = charts.results_figure(images, masks, [f"image {index}" for index in range(count)])
    for index, axes in enumerate(figure.axes[:count]):
        assert np.array_equal(axes.images[0].get_array(), images[index])
        assert axes.get_title() == f"image {index}" and not axes.axison
        (outline,) = axes.collections
        corners = outline.get_paths()[0].get_extents()
        assert (corners.x0, corners.x1) == (4.5, 9.5 + index) and (corners.y0, corners.y1) == (4.5, 14.5)


def test_the_png_files_have_the_size_of_the_figure_and_follow_the_data(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    other_counts = COUNTS + np.eye(3, dtype=int)
    confusion, other_confusion = (pixels(charts.confusion_figure(c, CLASSES), path) for c in (COUNTS, other_counts))
    assert confusion.shape == other_confusion.shape == (660, 810, 3) and (confusion != other_confusion).any()
    reliability, other_reliability = (
        pixels(charts.reliability_figure(CONFIDENCE, accuracy, ROWS, 0.1), path)
        for accuracy in (ACCURACY, 1 - ACCURACY)
    )
    assert reliability.shape == other_reliability.shape and (reliability != other_reliability).any()
    image, mask = np.full((20, 20), 90, np.uint8), np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    results, other_results = (
        pixels(charts.results_figure([image], [m], ["x"]), path) for m in (mask, mask.T[::-1] & False)
    )
    assert (results != other_results).any()
    assert (confusion == pixels(charts.confusion_figure(COUNTS, CLASSES), path)).all()
