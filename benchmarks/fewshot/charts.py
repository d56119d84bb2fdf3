"""The plot of accuracy over the number of labels."""

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_budgets(path: Path, rows: pd.DataFrame) -> None:
    """Plot the mean accuracy of each method over the number of labels, with one standard deviation.

    Args:
        path: PNG file to write.
        rows: columns ``method``, ``labels`` and ``accuracy``, one row for each method, budget and seed.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    for name, of_method in rows.groupby("method", sort=False):
        points = of_method.groupby("labels")["accuracy"].agg(["mean", "std"]).fillna(0.0)
        axes.errorbar(points.index, points["mean"], yerr=points["std"], marker="o", capsize=2, linewidth=1, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
