"""The demo on few phantoms: the whole pipeline, its table, its picture and its metrics."""

from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest
from PIL import Image

from medfocus.pipeline.commands import demo, evaluate
from medfocus.pipeline.config import load_config
from medfocus.pipeline.evaluation.metrics import as_lines

LABELLED, ARCHIVE = 16, 10
STAGES = {
    "phantoms": LABELLED + ARCHIVE,
    "embed": LABELLED,
    "train": LABELLED,
    "score": ARCHIVE,
    "evaluate": ARCHIVE,
}


def test_the_demo_runs_every_stage_and_shows_what_it_did(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LABELLED", LABELLED)
    monkeypatch.setattr(demo, "ARCHIVE", ARCHIVE)
    settings = ["pack.rows_per_shard=8", "segment.points_per_side=4", "train.epochs=1", "evaluate.resamples=20"]
    config = load_config(None, settings)
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "stale").touch()
    result = demo.run(config, str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert not (folder / "stale").exists()

    rows = [(row["stage"], row["images"]) for row in result["stages"]]
    packed = [("pack", LABELLED), ("pack", ARCHIVE)]
    assert rows == [("phantoms", STAGES["phantoms"]), *packed, *list(STAGES.items())[1:]]
    start = lines.index("stage       images  seconds  images/s") + 1
    table = [line.split() for line in lines[start : start + len(rows)]]
    assert [(stage, int(images)) for stage, images, *_ in table] == rows
    assert all(row["seconds"] > 0 for row in result["stages"])

    predictions = pads.dataset(folder / "out" / "predictions").to_table()
    assert result["scored"] == predictions.num_rows == ARCHIVE and result["quarantined"] == 0
    assert set(predictions["model_version"].to_pylist()) == {result["model_uri"].removeprefix("models:/")}

    config = config.model_copy(update={"work": str(tmp_path)})
    evaluated = evaluate.run(config, str(folder / "out"), str(folder / "archive" / "labels.csv"))
    assert (result["accuracy"], result["macro_auroc"]) == (evaluated["accuracy"], evaluated["macro_auroc"])
    assert set(as_lines("", evaluated["metrics"])) <= set(lines)
    assert f"See the masks: {folder / 'results.png'}" in lines
    assert any(line.endswith(f"--backend-store-uri sqlite:///{tmp_path}/mlflow.db") for line in lines)

    picture = np.asarray(Image.open(folder / "results.png").convert("L"))
    cells = [cell for row in np.array_split(picture, 2) for cell in np.array_split(row, 4, axis=1)]
    assert [float((cell < 250).mean()) > 0.5 for cell in cells] == [True] * 8  # a phantom in each place
