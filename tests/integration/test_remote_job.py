"""The whole job through the command line, against an S3 server and an MLflow server over HTTP."""

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
from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import locate

SETTINGS = ["--set", "segment.points_per_side=2", "--set", "train.epochs=2", "--set", "evaluate.resamples=50"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medfocus", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def medfocus(*arguments: str, code: int = 0) -> dict:
    """Run a command as a user does; its JSON result."""
    ended = run(*arguments, "--json")
    assert ended.returncode == code, ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr and "secret-word" not in ended.stdout + ended.stderr
    if code not in (0, 3):
        *before, last = ended.stderr.strip().splitlines()
        assert " ERROR " in last and not any(" ERROR " in line for line in before) and not ended.stdout
        return {"error": last}
    assert len(ended.stdout.splitlines()) == 1 or arguments[0] == "doctor"  # what a shell catches is the result alone
    return json.loads(ended.stdout.splitlines()[-1])


def work_in(folder: Path) -> list[str]:
    return ["--set", f"work={folder / 'work'}"]


def ids(prefix: str, folder: str) -> list[str]:
    place = locate(prefix, StorageSection()) / folder
    tables = [pq.read_table((place / name).path, filesystem=place.filesystem) for name in place.files(".parquet")]
    return [image for table in tables for image in table["image_id"].to_pylist()]


@pytest.fixture
def tracked(mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url.replace("://", "://reader:secret-word@"))
    return mlflow_url


def sample(source: Path, target: Path, each: int) -> None:
    """Copy some images of each class, the same at every call."""
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
    work = [*work_in(tmp_path), "--set", "pack.rows_per_shard=16", *SETTINGS]
    packed = medfocus("pack", str(tmp_path / "train"), f"{bucket}/train", *work)
    assert packed["rows"] == packed["labelled"] == 32 and packed["shards"] == 2
    medfocus("pack", str(tmp_path / "test"), f"{bucket}/test", *work)
    embedded = medfocus("embed", f"{bucket}/train", f"{bucket}/features", *work)
    assert embedded["embedded"] == 32 and embedded["quarantined"] == 0
    trained = medfocus("train", f"{bucket}/features", "--name", "brain", *work)
    assert trained["model_uri"] == "models:/brain/1"
    scored = medfocus("score", f"{bucket}/test", f"{bucket}/out", "--model", trained["model_uri"], *work)
    assert (scored["rows"], scored["scored"], scored["quarantined"]) == (21, 20, 1)
    images = {str(path.relative_to(tmp_path / "test")) for path in (tmp_path / "test").rglob("*.jpg")}
    assert sorted(ids(f"{bucket}/out", "predictions") + ids(f"{bucket}/out", "quarantine")) == sorted(images)
    assert ids(f"{bucket}/out", "quarantine") == ["no_tumor/broken.jpg"]
    judged = medfocus("evaluate", f"{bucket}/out", "--labels", f"{bucket}/test", *work)
    assert judged["rows"] == 20 and 0 <= judged["accuracy"] <= 1
    client = mlflow.MlflowClient(tracked)
    for result in (packed, embedded, trained, scored, judged):
        run = client.get_run(result["mlflow_run_id"])
        assert run.info.status == "FINISHED"
    assert client.get_model_version("brain", "1").run_id == trained["mlflow_run_id"]
    assert not (tmp_path / "work" / "mlflow.db").exists()

    # More in quarantine than allowed: the result stands, the exit code tells.
    strict = medfocus(
        "score", f"{bucket}/test", f"{bucket}/out", "--model", "models:/brain/1", *work,
        "--set", "score.max_quarantined=0.01", code=3,
    )  # fmt: skip
    assert strict["quarantined"] == 1 and strict["resumed"] == 21


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Two phantoms of each class, with labels."""
    subprocess.run(
        [sys.executable, "-m", "medfocus.starter.phantoms", str(tmp_path / "few"), "--count", "8"], check=True
    )
    return tmp_path / "few"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """The one line that a wrong call prints, made in this process: a new one takes seconds to import."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: str) -> str:
        assert cli.main([*arguments, *work_in(tmp_path), "--json"]) == 2
        printed = capsys.readouterr()
        assert len(printed.err.strip().splitlines()) == 1 and not printed.out
        return printed.err

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)


def test_bad_calls_are_one_line_and_start_nothing(
    s3: Callable[[str], str], few: Path, tmp_path: Path, told: Callable[..., str]
) -> None:
    bucket, images = s3("bad-calls"), str(few / "images")
    alone = medfocus("embed", "s3://absent-bucket/x", f"{bucket}/f", *work_in(tmp_path), code=2)["error"]
    assert "s3://absent-bucket/x: the bucket does not exist" in alone
    assert "no such folder or prefix" in told("pack", str(tmp_path / "absent"), f"{bucket}/x")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in told("pack", str(tmp_path / "empty"), f"{bucket}/x")
    assert f"{bucket}/empty: no manifest.json" in told(
        "score", f"{bucket}/empty", f"{bucket}/o", "--model", "models:/m/1"
    )
    assert "unknown configuration key" in told("pack", images, f"{bucket}/x", "--set", "pack.rows=3")
    assert "greater than or equal to 1" in told("pack", images, f"{bucket}/x", "--set", "pack.rows_per_shard=0")
    (tmp_path / "labels.csv").write_text("file,label\nother.png,a\n")
    assert "names no image below" in told("pack", images, f"{bucket}/x", "--labels", str(tmp_path / "labels.csv"))
    (tmp_path / "labels.csv").write_text("name,label\nother.png,a\n")
    assert "column file is missing" in told("pack", images, f"{bucket}/x", "--labels", str(tmp_path / "labels.csv"))
    assert "holds no features" in told("train", f"{bucket}/nothing")
    (tmp_path / "labels.csv").write_text("image_id,label\nother.png,a\n")
    assert "no predictions" in told("evaluate", f"{bucket}/nothing", "--labels", str(tmp_path / "labels.csv"))
    assert not (tmp_path / "work").exists()


def test_no_credentials_reach_the_log(s3: Callable[[str], str], few: Path, tmp_path: Path, monkeypatch) -> None:
    from tests import servers

    with servers.s3({"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASECRETID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
        error = medfocus("pack", str(few / "images"), "s3://closed/x", "--set", f"work={tmp_path / 'w'}", code=2)[
            "error"
        ]
    assert "AWS_ACCESS_KEY_ID" in error or "access denied" in error
    assert "AKIASECRETID" not in error and "verysecret" not in error


def test_a_class_with_one_example_is_named_before_training(few: Path, tmp_path: Path) -> None:
    with (few / "labels.csv").open() as file:
        rows = list(csv.reader(file))
    rows[1][1] = "lonely kind"
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    work = [*work_in(tmp_path), *SETTINGS]
    medfocus("pack", str(few / "images"), str(tmp_path / "s"), "--labels", str(tmp_path / "labels.csv"), *work)
    medfocus("embed", str(tmp_path / "s"), str(tmp_path / "f"), *work)
    assert "class lonely kind has one example" in medfocus("train", str(tmp_path / "f"), *work, code=2)["error"]


def test_a_store_that_is_down_is_told(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import servers

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://name:password@127.0.0.1:{servers.free_port()}")
    error = medfocus("pack", str(few / "images"), str(tmp_path / "s"), *work_in(tmp_path), code=1)["error"]
    assert "start the server or correct MLFLOW_TRACKING_URI" in error and "password" not in error


def test_doctor_tells_what_is_wrong_and_what_is_not(
    s3: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3("doctor")
    work = work_in(tmp_path)
    found = medfocus("doctor", "--probe", f"{bucket}/probe", *work)["checks"]
    assert "wrote, read and deleted" in found["storage"] and "CPUs" in found["ray"]
    assert not locate(f"{bucket}/probe", StorageSection()).files()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ended = run("doctor", "--probe", "s3://no-bucket/x", *work)
    assert ended.returncode == 1
    wrong = [line for line in ended.stdout.splitlines() if line.startswith("wrong")]
    assert len(wrong) == 2 and "the bucket does not exist" in wrong[0] and "MLFLOW_TRACKING_URI" in wrong[1]
    assert "2 of 9 checks failed (storage, mlflow)" in ended.stderr


def test_help_names_every_command_and_its_keys() -> None:
    ended = run("--help")
    for name in ("pack", "embed", "train", "score", "evaluate", "doctor", "demo", "not for clinical use"):
        assert name in ended.stdout
    ended = subprocess.run(
        [sys.executable, "-m", "medfocus", "embed", "--help"], capture_output=True, text=True, check=True
    )
    assert "segment.points_per_side [10]" in ended.stdout and "train.epochs" not in ended.stdout
