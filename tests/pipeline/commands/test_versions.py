"""``score`` and ``embed`` on the versions of an archive: only what is new is computed, and what left is left."""

import csv
import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.untrained_model import untrained_model
from medfocus.pipeline.commands import embed, evaluate, score
from medfocus.pipeline.config import load_config
from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import ShardEntry, write_manifest
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.data.withdrawal import withdraw
from medfocus.starter.phantoms import write_set


def write_shard(prefix: Location, name: str, folder: Path, rows: list[dict[str, str]]) -> ShardEntry:
    """Pack images, all of which are in the split ``test``."""
    contents = [(folder / "images" / row["file"]).read_bytes() for row in rows]
    columns = {
        "image_id": [row["file"] for row in rows],
        "image": contents,
        "media_type": ["image/png"] * len(rows),
        "label": [row["label"] for row in rows],
        "patient_id": [row["patient_id"] for row in rows],
        "split": ["test"] * len(rows),
        "source_uri": [row["file"] for row in rows],
        "sha256": [hashlib.sha256(content).hexdigest() for content in contents],
    }
    content = records.encode(records.shard_table(columns))
    (prefix / name).write(content)
    return ShardEntry(name, len(rows), len(content), hashlib.sha256(content).hexdigest(), len(rows))


def read(folder: Path) -> list[dict]:
    columns = ["image_id", "patient_id", "label", "split"]
    return [
        row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file, columns=columns).to_pylist()
    ]


def test_a_newer_version_costs_what_is_new_in_it(
    tmp_path: Path, ray_session: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(None, [f"work={tmp_path / 'work'}", "segment.points_per_side=2", "evaluate.resamples=50"])
    write_set(tmp_path / "set", 7, seed=0, preset="easy", size=64)
    with (tmp_path / "set" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["patient_id"] = f"patient {number}"
    untrained_model(config, tuple(sorted({row["label"] for row in rows}))).save(tmp_path / "model")
    prefix, out, model = locate(str(tmp_path / "shards"), config.storage), tmp_path / "out", str(tmp_path / "model")

    def scored() -> tuple[int, int, list[str]]:
        result = score.run(config, prefix.uri, str(out), model)
        predicted = read(out / "predictions")
        assert {row["split"] for row in predicted} == {"test"} and result["quarantined"] == 0
        assert evaluate.run(config, str(out), prefix.uri)["rows"] == len(predicted)
        return result["rows"], result["resumed"], sorted(row["image_id"] for row in predicted)

    names = [row["file"] for row in rows]
    shards = [write_shard(prefix, f"shard-{i}.parquet", tmp_path / "set", rows[3 * i : 3 * i + 3]) for i in range(2)]
    first = write_manifest(prefix, shards)
    assert scored() == (6, 0, names[:6])
    embed.run(config, prefix.uri, str(tmp_path / "features"))

    (tmp_path / "set" / "images" / names[1]).write_bytes((tmp_path / "set" / "images" / names[6]).read_bytes())
    newer = write_shard(prefix, "shard-2.parquet", tmp_path / "set", [rows[1], rows[6]])
    replaced = replace(shards[0], rows=2, labelled=2, replaced=(1,))
    write_manifest(prefix, [replaced, shards[1], newer], earlier=first)
    assert scored() == (7, 3, names)

    withdraw(prefix, ["patient 4"])
    left = [name for name in names if name != names[4]]
    with caplog.at_level(logging.INFO):
        assert scored() == (6, 4, left)
    assert "removed the rows of 1 shards that SHARDS has no more" in caplog.text
    embedded = embed.run(config, prefix.uri, str(tmp_path / "features"))
    assert (embedded["rows"], embedded["resumed"]) == (6, 0)
    features = read(tmp_path / "features" / "features")
    assert sorted(row["image_id"] for row in features) == left and {row["split"] for row in features} == {"test"}
    for folder in (out, tmp_path / "features"):
        assert not any(names[4].encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
