"""The main case: an archive of which few images have a label, from packing to scores."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.commands import embed, pack, score, train
from medfocus.pipeline.config import load_config
from medfocus.pipeline.errors import UsageError

COUNT, ROWS_PER_SHARD = 40, 4


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> SimpleNamespace:
    """Ten shards of four phantoms, of which eight phantoms, two of each class, have a label."""
    root = tmp_path_factory.mktemp("few")
    command = [sys.executable, "-m", "medfocus.starter.phantoms", str(root), "--count", str(COUNT)]
    subprocess.run(command, check=True)
    with (root / "labels.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    labelled = [
        row for label in sorted({row[1] for row in rows}) for row in [row for row in rows if row[1] == label][:2]
    ]
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *labelled])
    settings = [
        f"work={root / 'work'}",
        f"pack.rows_per_shard={ROWS_PER_SHARD}",
        "segment.points_per_side=2",
        "deid.names=keep",
    ]
    config = load_config(None, [*settings, "train.epochs=1"])
    packed = pack.run(config, str(root / "images"), str(root / "shards"), str(root / "labels.csv"))
    return SimpleNamespace(root=root, config=config, packed=packed, labelled={row[0] for row in labelled})


def embedded(archive: SimpleNamespace, shards: Path, features: Path) -> dict:
    """The result of ``embed``, whose rows must be the labelled ones."""
    result = embed.run(archive.config, str(shards), str(features))
    tables = [pq.read_table(path, columns=["image_id"]) for path in (features / "features").glob("*.parquet")]
    assert sorted(image for table in tables for image in table["image_id"].to_pylist()) == sorted(archive.labelled)
    assert result["embedded"] == len(archive.labelled) and result["retried_shards"] == 0
    return result


def test_few_labels_are_embedded_trained_on_and_all_is_scored(archive: SimpleNamespace) -> None:
    root = archive.root
    manifest = json.loads((root / "shards" / "manifest.json").read_text())
    assert sum(shard["labelled"] for shard in manifest["shards"]) == len(archive.labelled) == 8
    assert any(shard["labelled"] == 0 for shard in manifest["shards"])
    result = embedded(archive, root / "shards", root / "features")
    assert result["rows"] == len(archive.labelled)  # its progress is of these, not of the archive
    again = embed.run(archive.config, str(root / "shards"), str(root / "features"))
    assert again["resumed"] == again["rows"] == len(archive.labelled)
    trained = train.run(archive.config, str(root / "features"), "few-labels")
    scored = score.run(archive.config, str(root / "shards"), str(root / "out"), trained["model_uri"])
    assert scored["scored"] == COUNT and scored["quarantined"] == 0


def test_a_manifest_that_counts_no_labels_is_embedded_as_well(archive: SimpleNamespace, tmp_path: Path) -> None:
    """As those of earlier versions; a shard without a label is then read, and finished with no row."""
    for path in (archive.root / "shards").glob("*.parquet"):
        (tmp_path / path.name).symlink_to(path)
    manifest = json.loads((archive.root / "shards" / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["labelled"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    embedded(archive, tmp_path, tmp_path / "features")
    assert len(list((tmp_path / "features" / "features").glob("*.parquet"))) == COUNT // ROWS_PER_SHARD


def test_an_archive_without_a_label_is_refused(archive: SimpleNamespace, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes((archive.root / "images" / "000000.png").read_bytes())
    pack.run(archive.config, str(images), str(tmp_path / "shards"), None)
    with pytest.raises(UsageError, match="no image has a label; pack again with labels"):
        embed.run(archive.config, str(tmp_path / "shards"), str(tmp_path / "features"))
