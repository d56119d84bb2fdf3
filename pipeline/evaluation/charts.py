"""Pictures of an evaluation, as PNG files."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_NOTE = "MedFocus, research use only"
# Inches: with very many classes the cells shrink instead of the picture growing without bound.
_LONGEST_SIDE = 24.0
_MOST_NUMBERED_CLASSES = 40


def draw_confusion(path: Path, counts: np.ndarray, classes: tuple[str, ...]) -> None:
    """Confusion matrix: counts int [C, C], true class by predicted class, shaded by share of the true class."""
    side = min(max(4.0, 0.8 * len(classes) + 2), _LONGEST_SIDE)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.8)
    for row, column in np.ndindex(*counts.shape) if len(classes) <= _MOST_NUMBERED_CLASSES else ():
        dark = shares[row, column] > 0.5
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color="white" if dark else "black")
    names = [name.replace("_", " ").replace("$", r"\$") for name in classes]  # $ would begin a formula
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"Confusion matrix, {counts.sum()} images")
    _save(figure, path)


def draw_reliability(path: Path, confidence: np.ndarray, accuracy: np.ndarray, rows: np.ndarray, error: float) -> None:
    """Reliability diagram of calibration bins: mean confidence, accuracy and row count, float [bins], nan if empty."""
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    curve, counts = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    filled = rows > 0
    curve.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfectly calibrated")
    curve.plot(confidence[filled], accuracy[filled], marker="o", label=f"model, calibration error {error:.3f}")
    curve.set_ylabel("accuracy")
    curve.set_ylim(0, 1)
    curve.legend(loc="upper left")
    curve.set_title("Reliability")
    edges = np.linspace(0, 1, len(rows) + 1)
    counts.bar(edges[:-1], rows, width=1 / len(rows), align="edge", edgecolor="white")
    counts.set_ylabel("images")
    counts.set_xlabel("confidence")
    counts.set_xlim(0, 1)
    _save(figure, path)


def draw_results(path: Path, images: list[np.ndarray], masks: list[np.ndarray], titles: list[str]) -> None:
    """Images, uint8 [H, W] or [H, W, 3], each with the outline of its focus mask, bool [H, W], and a title."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    for axes, image, mask, title in zip(figure.subplots(rows, columns).flat, images, masks, titles, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.contour(mask.astype(float), levels=[0.5], colors=["#ffb000"], linewidths=1.2)
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.text(0.995, 0.005, _NOTE, ha="right", va="bottom", fontsize=6, color="grey")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
