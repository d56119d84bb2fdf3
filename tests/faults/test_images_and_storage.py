"""Damaged images, changed shards, and storage that fails."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from medfocus.pipeline.commands import quarantine
from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate
from tests.faults.injection import (
    NO_DIFFERENCE,
    ScoreCommand,
    compare_output,
    failing_s3,
    kill,
    wait_for_result,
    wait_until,
)
from tests.shards import write_shards

pytestmark = pytest.mark.faults


def bad_images(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Twelve files that cannot be scored, by name, each with the error class of its quarantine row."""
    grey = Image.open(io.BytesIO(good))
    two = io.BytesIO()
    grey.save(two, "TIFF", save_all=True, append_images=[grey])
    nan = io.BytesIO()
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(nan, "TIFF")
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    larger = io.BytesIO()
    Image.new("L", (11_000, 11_000)).save(larger, "PNG")
    jpeg = io.BytesIO()
    grey.save(jpeg, "JPEG")
    middle = len(good) // 2
    return {
        "bad-byte.png": (b"\0", "Undecodable"),
        "bad-header.png": (good[:20], "Truncated"),
        "bad-cut.png": (good[:middle], "Truncated"),
        "bad-flipped.png": (good[:middle] + bytes(64) + good[middle + 64 :], "Undecodable"),
        "bad-text.png": (b"this is no image", "Undecodable"),
        "bad-zeros.png": (bytes(5000), "Undecodable"),
        "bad-cut.jpg": (jpeg.getvalue()[: len(jpeg.getvalue()) // 3], "Truncated"),
        "bad-gif.png": (b"GIF89a" + bytes(100), "Undecodable"),
        "bad-frames.tiff": (two.getvalue(), "ManyFrames"),
        "bad-nan.tiff": (nan.getvalue(), "NotFinite"),
        "bad-bomb.png": (bomb.getvalue(), "TooManyPixels"),
        "bad-large.png": (larger.getvalue(), "TooManyPixels"),
    }


def test_bad_images_are_quarantined_and_all_others_scored(
    archive: SimpleNamespace,
    undisturbed: dict,
    command: ScoreCommand,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(archive.root / "images", folder)
    bad = bad_images((folder / "000000.png").read_bytes())
    for name, (content, _) in bad.items():
        (folder / name).write_bytes(content)
    write_shards(folder, tmp_path / "shards", archive.config.pack.rows_per_shard)
    command.shards = str(tmp_path / "shards")
    names = pq.read_table(tmp_path / "shards" / "shard-000000.parquet")["image_id"].to_pylist()
    first, second = [row for row, name in enumerate(names) if name not in bad][:2]
    change_first_shard(tmp_path / "shards", lambda table: set_value(table, "image_id", second, names[first]))
    images = (archive.images | set(bad)) - {names[second]}
    result = command.finish()
    assert (result["scored"], result["quarantined"]) == (len(archive.images) - 1, len(bad) + 1)
    expected = {name: error for name, (_, error) in bad.items()} | {f"{names[first]}#{second}": "DuplicateId"}
    quarantined = {row["image_id"]: row for row in command.rows("quarantine")}
    assert {name: row["error"] for name, row in quarantined.items()} == expected
    assert f"row {first} " in quarantined[f"{names[first]}#{second}"]["message"]
    assert compare_output(command, images, undisturbed) == NO_DIFFERENCE

    summary = quarantine.run(archive.config, command.out)
    assert summary["quarantined"] == len(expected) and summary["causes"][0]["error"] == "Undecodable"
    assert "TooManyPixels" in capsys.readouterr().out

    # After a fix, here a higher limit, only the quarantined images are scored again.
    again = command.finish("--retry-quarantined", "--set", "decode.max_pixels=125000000")
    assert again["quarantined"] == len(expected) - 1 and again["rows"] == result["rows"]
    assert "bad-large.png" in {row["image_id"] for row in command.rows("predictions")}
    assert compare_output(command, images, undisturbed) == NO_DIFFERENCE


def set_value(table, name: str, row: int, value):
    """A copy of a table with one value changed."""
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), [values])


def change_first_shard(shards: Path, change: Callable) -> None:
    """Change the first shard, and its digest in the manifest."""
    shard = shards / "shard-000000.parquet"
    pq.write_table(change(pq.read_table(shard)), shard)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.long
def test_a_shard_that_changes_between_runs_is_named_and_the_others_are_scored(
    archive: SimpleNamespace, undisturbed: dict, command_with_own_shards: ScoreCommand
) -> None:
    command = command_with_own_shards
    process = command.start()
    wait_until(lambda: command.parts() >= 1, process)
    kill(process)
    victim = sorted(Path(command.shards).glob("*.parquet"))[7]
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + b"?")
    stderr = command.finish(code=1)["stderr"]
    assert f"{victim.name}: has changed since it was packed" in stderr and "1 of" in stderr
    assert command.parts() == 7
    victim.write_bytes(content)
    assert command.finish()["scored"] == len(archive.images)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE


def on_s3(archive: SimpleNamespace, command: ScoreCommand, bucket: str) -> None:
    """Copy the shards to a bucket, and let the command read and write there."""
    for path in sorted(path for path in Path(archive.shards).iterdir() if path.is_file()):
        (locate(f"{bucket}/shards", StorageSection()) / path.name).write(path.read_bytes())
    command.shards, command.out = f"{bucket}/shards", f"{bucket}/out"


def test_transient_s3_errors_lose_no_row(
    archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand, s3: Callable[[str], str], s3_url: str
) -> None:
    on_s3(archive, command, s3("faults"))
    with failing_s3(s3_url, share=0.2, seed=3) as (url, proxy):
        command.environment["AWS_ENDPOINT_URL"] = url
        result = command.finish()
    assert sum(proxy.faults.values()) >= 5 and result["scored"] == len(archive.images)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE


def test_expired_credentials_end_the_run_at_once(
    archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand, s3: Callable[[str], str], s3_url: str
) -> None:
    on_s3(archive, command, s3("closing"))
    with failing_s3(s3_url, share=0, seed=0) as (url, proxy):
        command.environment["AWS_ENDPOINT_URL"] = url
        process = command.start()
        wait_until(lambda: command.parts() >= 1, process)
        proxy.expired = True
        stderr = wait_for_result(process, code=1)["stderr"]
        assert "credentials" in stderr and "have expired; renew them and start again" in stderr
        assert "Traceback" not in stderr
    assert compare_output(command, archive.images, undisturbed).doubled == 0


@pytest.mark.long
def test_a_run_beside_a_full_disk_for_spilling_ends_in_order_and_the_next_goes_on(
    archive: SimpleNamespace, undisturbed: dict, command: ScoreCommand
) -> None:
    """Another job holds nearly all of a small object store, and the disk to spill it to counts as full."""
    full = {"local_fs_capacity_threshold": 1e-6, "oom_grace_period_s": 1}
    node = {"num_cpus": 2, "object_store_memory": 80 << 20, "_system_config": full}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    hold = (
        "import ray, sys, time; ray.init(sys.argv[1]); x = [ray.put(bytes(9 << 20)) for _ in range(8)];"
        " print('full', flush=True); time.sleep(999)"
    )
    hog = subprocess.Popen(
        [sys.executable, "-c", hold, cluster.address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert hog.stdout and any(line.startswith("full") for line in hog.stdout)
        command.settings.append(f"cluster.address={cluster.address}")
        process = command.start()
        _, stderr = process.communicate(timeout=240)
        lines = stderr.strip().splitlines()
        # A run whose few blocks find room ends well; any other ends with one line.
        assert (process.returncode, " ERROR " in lines[-1]) in ((0, False), (1, True)), lines
        assert not any("Traceback" in line for line in lines)
    finally:
        hog.kill()
        cluster.shutdown()
    command.settings.pop()
    assert command.finish()["scored"] == len(archive.images)
    assert compare_output(command, archive.images, undisturbed) == NO_DIFFERENCE
