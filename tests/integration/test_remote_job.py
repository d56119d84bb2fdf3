"""The commands against an S3 server and an MLflow server over HTTP."""

import csv
import json
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medfocus.pipeline import cli
from medfocus.pipeline.commands import embed, pack
from medfocus.pipeline.config import StorageSection, load_config
from medfocus.pipeline.data.storage import locate
from medfocus.starter.phantoms import write_set
from tests import servers
from tests.integration.one_process import run_commands
from tests.shards import add_shard

SETTINGS = ["--set", "segment.points_per_side=2", "--set", "train.epochs=2", "--set", "evaluate.resamples=50"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does."""
    command = [sys.executable, "-m", "medfocus", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def medfocus(*arguments: str, code: int = 0) -> dict:
    """Run a command as a user does; its JSON result, or its last line of stderr as ``error``."""
    process = run(*arguments, "--json")
    assert process.returncode == code, process.stderr[-2000:]
    assert "Traceback" not in process.stderr and "secret-word" not in process.stdout + process.stderr
    if code not in (0, 3):
        *before, last = process.stderr.strip().splitlines()
        assert " ERROR " in last and not any(" ERROR " in line for line in before) and not process.stdout
        return {"error": last}
    lines = process.stdout.splitlines()
    assert len(lines) == 1 or arguments[0] == "doctor"  # stdout is the result alone
    return json.loads(lines[-1])


def work_in(folder: Path) -> list[str]:
    """The setting of the work folder."""
    return ["--set", f"work={folder / 'work'}"]


def read_rows(prefix: str, folder: str) -> dict[str, dict]:
    """The rows of ``predictions`` or ``quarantine``, by ``image_id``, each of which is there once."""
    place = locate(prefix, StorageSection()) / folder
    tables = [pq.read_table((place / name).path, filesystem=place.arrow_filesystem) for name in place.files(".parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    by_image = {row["image_id"]: row for row in rows}
    assert len(by_image) == len(rows)
    return by_image


@pytest.fixture
def tracked(mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of the MLflow server; the environment names it with a password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url.replace("://", "://reader:secret-word@"))
    return mlflow_url


def sample(source: Path, target: Path, each: int) -> None:
    """Copy ``each`` images of each class, the same at every call."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / folder.name).mkdir(parents=True)
        for image in random.Random(0).sample(sorted(folder.iterdir()), each):
            shutil.copy(image, target / folder.name)


def test_real_images_from_folder_to_metrics(
    brain_mri: Path, s3: Callable[[str], str], tracked: str, tmp_path: Path
) -> None:
    import mlflow

    sample(brain_mri / "train", tmp_path / "train", 8)
    sample(brain_mri / "test", tmp_path / "test", 5)
    (tmp_path / "test" / "no_tumor" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    bucket = s3("archive")
    work = [*work_in(tmp_path), "--set", "deid.names=keep", "--set", "pack.rows_per_shard=16", *SETTINGS]
    preparation = [
        ["pack", str(tmp_path / "train"), f"{bucket}/train", *work],
        ["pack", str(tmp_path / "test"), f"{bucket}/test", *work],
        ["embed", f"{bucket}/train", f"{bucket}/features", *work],
        ["train", f"{bucket}/features", "--name", "brain", *work],
    ]
    process = run_commands(preparation)
    assert process.returncode == 0, process.stderr[-2000:]
    assert "Traceback" not in process.stderr and "secret-word" not in process.stdout + process.stderr
    packed, tested, embedded, trained = map(json.loads, process.stdout.splitlines())
    assert packed["rows"] == packed["labelled"] == packed["packed"] == 32 and packed["shards"] == 2
    assert (tested["rows"], tested["quarantined"]) == (20, 1)
    broken = read_rows(f"{bucket}/test", "quarantine")["no_tumor/broken.jpg"]
    assert (broken["stage"], broken["error"]) == ("pack", "Undecodable")
    add_shard({"no_tumor/broken.jpg": b"\xff\xd8\xff nothing"}, f"{bucket}/test", {})
    assert embedded["embedded"] == 32 and embedded["quarantined"] == 0
    assert trained["model_uri"] == "models:/brain/1"
    scored = medfocus("score", f"{bucket}/test", f"{bucket}/out", "--model", trained["model_uri"], *work)
    assert (scored["rows"], scored["scored"], scored["quarantined"]) == (21, 20, 1)
    images = {str(path.relative_to(tmp_path / "test")) for path in (tmp_path / "test").rglob("*.jpg")}
    predictions = read_rows(f"{bucket}/out", "predictions")
    assert set(predictions) == images - {"no_tumor/broken.jpg"}
    assert set(read_rows(f"{bucket}/out", "quarantine")) == {"no_tumor/broken.jpg"}
    evaluated = medfocus("evaluate", f"{bucket}/out", "--labels", f"{bucket}/test", *work)
    right = [row["label"] == name.split("/")[0] for name, row in predictions.items()]
    assert evaluated["rows"] == 20 and evaluated["accuracy"] == pytest.approx(sum(right) / 20)
    client = mlflow.MlflowClient(tracked)
    for result in (packed, embedded, trained, scored, evaluated):
        assert client.get_run(result["mlflow_run_id"]).info.status == "FINISHED"
    assert client.get_model_version("brain", "1").run_id == trained["mlflow_run_id"]
    assert not (tmp_path / "work" / "mlflow.db").exists()

    # More rows in quarantine than allowed: the result is printed, and the exit code is 3.
    strict = medfocus(
        "score", f"{bucket}/test", f"{bucket}/out", "--model", "models:/brain/1", *work,
        "--set", "score.max_quarantined=0.01", code=3,
    )  # fmt: skip
    assert strict["quarantined"] == 1 and strict["resumed"] == 21


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two phantoms of each class, with labels."""
    write_set(tmp_path / "few", 8, seed=0, preset="easy", size=128)
    return tmp_path / "few"


@pytest.fixture
def usage_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """A function that runs a wrong call in this process, and gives its one line of stderr.

    A new process would take seconds to import everything. A key is there, since making one takes a line.
    """
    monkeypatch.setenv("MEDFOCUS_KEY", "a key of the tests that is long enough")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: str) -> str:
        capsys.readouterr()
        assert cli.main([*arguments, *work_in(tmp_path), "--json"]) == 2
        printed = capsys.readouterr()
        assert len(printed.err.strip().splitlines()) == 1 and not printed.out
        return printed.err

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)


def test_bad_calls_are_one_line_and_start_nothing(
    s3: Callable[[str], str], few: Path, tmp_path: Path, usage_error: Callable[..., str]
) -> None:
    bucket, images = s3("bad-calls"), str(few / "images")
    alone = medfocus("embed", "s3://absent-bucket/x", f"{bucket}/f", *work_in(tmp_path), code=2)["error"]
    assert "s3://absent-bucket/x: the bucket does not exist" in alone
    assert "no such folder or prefix" in usage_error("pack", str(tmp_path / "absent"), f"{bucket}/x")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in usage_error("pack", str(tmp_path / "empty"), f"{bucket}/x")
    assert f"{bucket}/empty: no manifest.json" in usage_error(
        "score", f"{bucket}/empty", f"{bucket}/o", "--model", "models:/m/1"
    )
    assert "unknown configuration key" in usage_error("pack", images, f"{bucket}/x", "--set", "pack.rows=3")
    assert "greater than or equal to 1" in usage_error("pack", images, f"{bucket}/x", "--set", "pack.rows_per_shard=0")
    (tmp_path / "labels.csv").write_text("file,label\nother.png,a\n")
    assert "names no image below" in usage_error(
        "pack", images, f"{bucket}/x", "--labels", str(tmp_path / "labels.csv")
    )
    (tmp_path / "labels.csv").write_text("name,label\nother.png,a\n")
    assert "column file is missing" in usage_error(
        "pack", images, f"{bucket}/x", "--labels", str(tmp_path / "labels.csv")
    )
    assert "holds no features" in usage_error("train", f"{bucket}/nothing")
    (tmp_path / "labels.csv").write_text("image_id,label\nother.png,a\n")
    assert "no predictions" in usage_error("evaluate", f"{bucket}/nothing", "--labels", str(tmp_path / "labels.csv"))
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"pack"}
    assert not locate(bucket, StorageSection()).files(recursive=True)


def test_no_credentials_reach_the_log(s3: Callable[[str], str], few: Path, tmp_path: Path, monkeypatch) -> None:
    with servers.s3({"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRETID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
        error = medfocus("pack", str(few / "images"), "s3://closed/x", "--set", f"work={tmp_path / 'w'}", code=2)[
            "error"
        ]
    assert "AWS_ACCESS_KEY_ID" in error or "access denied" in error
    assert "AKIASECRETID" not in error and "verysecret" not in error


def test_a_class_with_one_example_is_named_before_training(
    few: Path, tmp_path: Path, usage_error: Callable[..., str], ray_session: None
) -> None:
    with (few / "labels.csv").open() as file:
        rows = list(csv.reader(file))
    rows[1][1] = "lonely kind"
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    config = load_config(None, [f"work={tmp_path / 'work'}", "segment.points_per_side=2"])
    pack.run(config, str(few / "images"), str(tmp_path / "shards"), str(tmp_path / "labels.csv"))
    embed.run(config, str(tmp_path / "shards"), str(tmp_path / "features"))
    assert "class lonely kind has one example" in usage_error("train", str(tmp_path / "features"))


def test_a_tracking_store_that_is_down_is_named(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the default waits longer
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://name:password@127.0.0.1:{servers.free_port()}")
    error = medfocus("pack", str(few / "images"), str(tmp_path / "s"), *work_in(tmp_path), code=1)["error"]
    assert "start the server or correct MLFLOW_TRACKING_URI" in error and "password" not in error


def test_doctor_names_the_checks_that_fail(
    s3: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3("doctor")
    work = work_in(tmp_path)
    checks = medfocus("doctor", "--probe", f"{bucket}/probe", *work)["checks"]
    assert "wrote, read and deleted" in checks["storage"] and "CPUs" in checks["ray"]
    assert not locate(f"{bucket}/probe", StorageSection()).files()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the default waits longer
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    process = run("doctor", "--probe", "s3://no-bucket/x", *work)
    assert process.returncode == 1
    wrong = [line for line in process.stdout.splitlines() if line.startswith("wrong")]
    assert len(wrong) == 2 and "the bucket does not exist" in wrong[0] and "MLFLOW_TRACKING_URI" in wrong[1]
    assert "2 of 9 checks failed (storage, mlflow)" in process.stderr


def test_help_names_every_command_and_its_keys() -> None:
    process = run("--help")
    assert process.returncode == 0
    for name in ("pack", "embed", "train", "score", "evaluate", "doctor", "demo", "not for clinical use"):
        assert name in process.stdout
    process = run("embed", "--help")
    assert process.returncode == 0
    assert "segment.points_per_side [10]" in process.stdout and "train.epochs" not in process.stdout
