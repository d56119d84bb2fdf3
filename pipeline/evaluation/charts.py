"""Charts of an evaluation: each function returns a figure, and ``save`` writes it as a PNG file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay

_NOTE = "MedFocus, research use only"
# Inches: with very many classes the cells shrink instead of the figure growing without bound.
_LONGEST_SIDE = 24.0
# With more classes, the numbers in the cells cannot be read.
_MOST_NUMBERED_CLASSES = 40
_DOTS_PER_INCH = 150


def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix: a count in each cell, shaded by its share of the true class.

    Args:
        counts: int [C, C], true class by predicted class.
        classes: names of the C classes.

    Returns:
        The figure; with more than 40 classes it has no numbers.
    """
    side = min(max(4.0, 0.8 * len(classes) + 2), _LONGEST_SIDE)
    figure = _new_figure(side + 1, side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [name.replace("_", " ").replace("$", r"\$") for name in classes]  # $ would begin a formula
    display = ConfusionMatrixDisplay(shares, display_labels=names).plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        include_values=len(classes) <= _MOST_NUMBERED_CLASSES,
        xticks_rotation=45,
        im_kw={"vmin": 0, "vmax": 1},
    )
    if display.text_ is not None:  # the display writes the shares
        for cell, text in np.ndenumerate(display.text_):
            text.set(text=str(counts[cell]), color="white" if shares[cell] > 0.5 else "black")
    figure.colorbar(display.im_, ax=axes, label="share of the true class", shrink=0.8)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix, {counts.sum()} images")
    return figure


def reliability_figure(confidence: np.ndarray, accuracy: np.ndarray, rows: np.ndarray, error: float) -> Figure:
    """Reliability diagram of the predicted class (arXiv 1706.04599, figure 1), with the number of images in each bin.

    Args:
        confidence: float [bins], mean confidence of each bin, nan where it is empty.
        accuracy: float [bins], share of correct predictions of each bin, nan where it is empty.
        rows: [bins], number of images of each bin.
        error: expected calibration error, for the legend.

    Returns:
        The figure; empty bins have no point.
    """
    figure = _new_figure(5, 5.5)
    curve, histogram = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    filled = rows > 0
    CalibrationDisplay(accuracy[filled], confidence[filled], y_prob=None).plot(
        ax=curve, name=f"model, calibration error {error:.3f}", marker="o"
    )
    curve.set(title="Reliability", xlabel=None, ylabel="accuracy", ylim=(0, 1))
    curve.legend(loc="upper left")
    edges = np.linspace(0, 1, len(rows) + 1)
    histogram.bar(edges[:-1], rows, width=1 / len(rows), align="edge", edgecolor="white")
    histogram.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    return figure


def results_figure(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Images with the outlines of their focus masks, four in a row.

    Args:
        images: uint8 [H, W] or [H, W, 3], one or more.
        masks: bool [H, W], the focus mask of each image.
        titles: title of each image.

    Returns:
        The figure.
    """
    columns = min(4, len(images))
    lines = -(-len(images) // columns)
    figure = _new_figure(2.6 * columns, 2.9 * lines)
    cells = figure.subplots(lines, columns, squeeze=False).flat
    for axes, image, mask, title in zip(cells, images, masks, titles, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.contour(mask.astype(float), levels=[0.5], colors=["#ffb000"], linewidths=1.2)
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    return figure


def draw_results(path: Path, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Write ``results_figure`` as a PNG file."""
    save(results_figure(images, masks, titles), path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file with 150 dots an inch."""
    figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure, of a size in inches, with the note that it is for research only."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.text(0.995, 0.005, _NOTE, ha="right", va="bottom", fontsize=6, color="grey")
    return figure
