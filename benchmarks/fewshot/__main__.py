"""``python -m benchmarks.fewshot``: how well each method classifies with few labels.

Prints the table, method by budget, as Markdown; writes it, every row behind it and the drawn labels; logs all to
MLflow with a plot of accuracy over budget. Exits 1 where a target is missed.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pandas as pd
import torch

from benchmarks.fewshot import charts
from benchmarks.fewshot.commands import by_commands
from benchmarks.fewshot.examples import Examples
from benchmarks.fewshot.methods import ANCHOR, Method, Task, all_methods
from benchmarks.fewshot.prepare import Backbone, Data, prepare, write_labels
from benchmarks.fewshot.protocol import Budget, cross_fitted_temperature, judge
from medfocus.cluster.connect import connected
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.tracking import runs

SHARES = ("5%", "10%", "20%", "50%", "100%")
SHOTS = ("1 shots", "2 shots", "4 shots", "8 shots", "16 shots", "16 shots, natural")
OURS, PAPERS = ("focus: masked_image", "focus: attention", "focus: both"), "regions laid over in colour"
_TRUE = ", true masks"
COMMANDS = "focus: both, by medfocus train and score, one draw"


def main(arguments: Sequence[str] | None = None) -> int:
    call = _parse(arguments)
    config = load_config(call.config, ["model.focus=both", f"work={call.out}", *call.set])
    folder = Path(call.out) / "fewshot"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    backbone = Backbone.of(config)
    with connected(config.cluster.address, config.cluster.cpus):
        data = prepare(call.data, config, backbone, folder)
    torch.set_num_threads(config.cluster.cpus or torch.get_num_threads())
    budgets = [Budget.parse(text) for text in call.budgets]
    rows, drawn = measure(data, config, backbone, budgets, call.seeds)
    first = budgets[0].name
    judged = by_commands(folder, config, drawn[first]["0"])
    entry = {"method": COMMANDS, "budget": first, "seed": 0, "labels": len(drawn[first]["0"])}
    rows = pd.concat([rows, pd.DataFrame([entry | {name: judged[name] for name in ("accuracy", "macro_auroc")}])])
    table = summary(rows)
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    print(f"\n{data.name}: accuracy, mean ± standard deviation, draws: {call.seeds}, {date}\n\n{table}\n", flush=True)
    _keep(folder, rows, table, drawn, config)
    missed = targets(rows, data, budgets)
    print("\n".join(missed))
    return 1 if any("MISSED" in line for line in missed) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fewshot", description=__doc__)
    parser.add_argument("--data", default="phantoms-hard", help="phantoms-hard, phantoms-easy, or a folder")
    parser.add_argument("--budgets", nargs="+", default=[*SHARES, *SHOTS], help="such as 5%% '4 shots'")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the labels (default: 3)")
    parser.add_argument("--out", default="work/fewshot", help="folder for all that is written")
    parser.add_argument("--config", help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser.parse_args(arguments)


def measure(
    data: Data, config: Config, backbone: Backbone, budgets: Sequence[Budget], seeds: int
) -> tuple[pd.DataFrame, dict[str, dict[str, list[str]]]]:
    """Every method at every budget and seed: a row each; and the labels that each was given."""
    classes = tuple(sorted(set(data.training.label)))
    task = Task(backbone.clip, backbone.tokenizer, classes, config.clip.cut)
    rows: list[dict[str, object]] = []
    drawn: dict[str, dict[str, list[str]]] = {}
    for budget in budgets:
        drawn[budget.name] = {}
        for seed in range(seeds):
            chosen = budget.draw(data.training.label.tolist(), data.training.patient.tolist(), seed)
            drawn[budget.name][str(seed)] = data.training.image_id[chosen].tolist()
            for name, (training, test) in _contests(data).items():
                started = time.monotonic()
                figures = contest(name, task, training.take(chosen), test, seed)
                seconds = time.monotonic() - started
                rows.append({"method": name, "budget": budget.name, "seed": seed, "labels": len(chosen), **figures})
                print(
                    f"{budget.name} seed {seed} {name}: {figures['accuracy']:.3f} in {seconds:.1f} s", file=sys.stderr
                )
    return pd.DataFrame(rows), drawn


def _contests(data: Data) -> dict[str, tuple[Examples, Examples]]:
    """What each method is fitted and tested on: all with SAM2's masks, the project's own with the true ones too."""
    contests = dict.fromkeys(all_methods(), (data.training, data.test))
    if "imagenet" not in data.training.embeddings:
        del contests[ANCHOR]
    if data.training_true is not None and data.test_true is not None:
        contests |= {name + _TRUE: (data.training_true, data.test_true) for name in OURS}
    return contests


def contest(name: str, task: Task, training: Examples, test: Examples, seed: int) -> dict[str, float]:
    """Fit one method and judge it on the test rows."""

    def new() -> Method:
        return all_methods()[name.removesuffix(_TRUE)]

    method = new()
    method.fit(task, training, seed)
    degree = cross_fitted_temperature(new, task, training, seed)
    return judge(method.logits(test), degree, test.targets(task.classes), task.classes) | {"temperature": degree}


def summary(rows: pd.DataFrame) -> str:
    """Markdown: a line a method, a column a budget."""
    grouped = rows.groupby(["method", "budget"], sort=False)["accuracy"].agg(["mean", "std"]).fillna(0.0)
    means, deviations = dict(grouped["mean"]), dict(grouped["std"])
    cells = {key: f"{mean:.3f} ± {deviations[key]:.3f}" for key, mean in means.items()}
    budgets = rows["budget"].unique().tolist()
    lines = [f"| method | {' | '.join(budgets)} |", "|---" * (1 + len(budgets)) + "|"]
    for name in rows["method"].unique().tolist():
        lines.append(f"| {name} | {' | '.join(cells.get((name, budget), '') for budget in budgets)} |")
    return "\n".join(lines)


def targets(rows: pd.DataFrame, data: Data, budgets: Sequence[Budget]) -> list[str]:
    """What the method must reach, a line each that says met or MISSED.

    On hard phantoms, at the first budget: 10 points over the best method without masks, and not below the paper's way.
    On other data, at every budget: not below the best method without masks by more than a standard deviation; and at 5
    and 10 %, ahead of the anchor where it is there.
    """
    figures = rows.groupby(["budget", "method"])["accuracy"].agg(["mean", "std"]).fillna(0.0)
    without = [name for name, method in all_methods().items() if not method.masks and name != ANCHOR]
    lines = []

    def check(budget: Budget, what: str, met: bool) -> None:
        lines.append(f"{budget.name}: {what}: {'met' if met else 'MISSED'}")

    for budget in budgets[:1] if data.name == "phantoms-hard" else budgets:
        of_budget = figures.loc[budget.name]
        at, spreads = dict(of_budget["mean"]), dict(of_budget["std"])
        best, rival = max(OURS, key=lambda name: at[name]), max(without, key=lambda name: at[name])
        both, theirs, spread = at["focus: both"], at[rival], spreads[rival]
        shown = f"{best} {at[best]:.3f}"
        if data.name == "phantoms-hard":
            check(budget, f"{shown}, 0.10 over {rival} {theirs:.3f}", at[best] >= theirs + 0.10)
            check(budget, f"{shown}, not below {PAPERS} {at[PAPERS]:.3f}", at[best] >= at[PAPERS])
            continue
        check(
            budget, f"focus: both {both:.3f}, not below {rival} {theirs:.3f} by {spread:.3f}", both >= theirs - spread
        )
        if budget.name in ("5%", "10%") and ANCHOR in at:
            check(budget, f"{shown}, ahead of {ANCHOR} {at[ANCHOR]:.3f}", at[best] > at[ANCHOR])
    return lines


def _keep(folder: Path, rows: pd.DataFrame, table: str, drawn: dict, config: Config) -> None:
    rows.to_parquet(folder / "rows.parquet")
    (folder / "table.md").write_text(table + "\n")
    write_labels(folder / "labels.json", drawn)
    charts.draw_budgets(folder / "accuracy.png", rows)
    with runs.run("fewshot benchmark", config):
        for name in ("rows.parquet", "table.md", "accuracy.png"):
            mlflow.log_artifact(str(folder / name))
        means = rows.groupby(["method", "budget"], sort=False, as_index=False)["accuracy"].mean()
        named = zip(means["method"], means["budget"], means["accuracy"], strict=True)
        runs.log_metrics({f"accuracy/{_key(method)}/{_key(budget)}": value for method, budget, value in named})


def _key(name: str) -> str:
    """A name with what MLflow allows in one."""
    return "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in name)


if __name__ == "__main__":
    sys.exit(main())
