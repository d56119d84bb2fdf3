"""The embedded store with several commands at once, after a kill, in oddly named folders and after a move."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from medfocus.pipeline.config import Config
from medfocus.pipeline.tracking import runs
from medfocus.pipeline.tracking.store import TrackingError, attempt, sqlite_uri

# A command that waits for the start signal, so that several of them connect at the same moment.
RUN = """
import sys, time
from medfocus.pipeline.tracking import runs
from medfocus.pipeline.config import Config
config = Config(work=sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
with runs.run("pack", config):
    for step in range(5):
        runs.log_progress({"rows_done": step})
        runs.log_dataset("shards", "0" * 36, "pack")
"""


def run_at_once(work: Path, count: int) -> list[subprocess.CompletedProcess[str]]:
    """Run ``RUN`` in ``count`` processes that connect at the same moment."""
    command = [sys.executable, "-c", RUN, str(work)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(count)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=200) for process in running]
    return [
        subprocess.CompletedProcess(command, process.returncode, out, err)
        for process, (out, err) in zip(running, outputs, strict=True)
    ]


def runs_of(work: Path) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(sqlite_uri(work / "mlflow.db"))
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_commands_that_start_at_once_in_a_new_folder_all_succeed(tmp_path: Path) -> None:
    processes = run_at_once(tmp_path / "work", 4)
    assert [(one.returncode, one.stderr) for one in processes] == [(0, "")] * 4
    finished = runs_of(tmp_path / "work")
    assert [run.info.status for run in finished] == ["FINISHED"] * 4
    assert {len(run.inputs.dataset_inputs) for run in finished} == {1}


def test_a_command_killed_while_it_creates_the_store_leaves_no_broken_store(tmp_path: Path) -> None:
    work = tmp_path / "work"
    draft = work / ".mlflow.db.draft"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(work)], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    deadline = time.monotonic() + 120
    while not (draft.exists() and draft.stat().st_size > 20_000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (work / "mlflow.db").exists()
    with runs.run("pack", Config(work=str(work))):
        pass
    assert [run.info.status for run in runs_of(work)] == ["FINISHED"] and not draft.exists()


def test_a_write_that_collides_with_another_is_retried() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    attempts = []

    def write() -> str:
        attempts.append(1)
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS t (name TEXT UNIQUE)"))
            if len(attempts) < 3:
                connection.execute(sqlalchemy.text("INSERT INTO t VALUES ('a'), ('a')"))
        return "written"

    assert attempt(write) == "written" and len(attempts) == 3
    with pytest.raises(IntegrityError):
        attempts.clear()
        write()


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_the_database_is_in_the_folder_whatever_its_name(name: str) -> None:
    path = Path("/data") / name / "mlflow.db"
    assert sqlalchemy.make_url(sqlite_uri(path)).database == str(path)


@pytest.mark.parametrize("name", ["a?b", "50%", "a%20b", "a b#c", "ä中?x=1#f"])
def test_nothing_is_written_beside_an_oddly_named_work_folder(tmp_path: Path, name: str) -> None:
    config = Config(work=str(tmp_path / name))
    with runs.run("pack", config) as active:
        mlflow.log_text("content", "file.txt")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name / "mlflow.db").is_file()
    assert [path.read_text() for path in (tmp_path / name).rglob("file.txt")] == ["content"]
    assert mlflow.artifacts.load_text(f"{active.info.artifact_uri}/file.txt") == "content"


def record(config: Config) -> str:
    """A run with a file and a registered model; the model's URI."""
    with runs.run("train", config) as active:
        mlflow.log_text("content", "model/file.txt")
    client = mlflow.MlflowClient()
    if not client.search_registered_models(filter_string="name='m'"):
        client.create_registered_model("m")
    version = client.create_model_version("m", f"{active.info.artifact_uri}/model", active.info.run_id)
    return f"models:/m/{version.version}"


def content(config: Config, uri: str) -> str:
    runs.connect(config)
    return (Path(mlflow.artifacts.download_artifacts(uri)) / "file.txt").read_text()


def test_a_work_folder_that_is_moved_keeps_its_models(tmp_path: Path) -> None:
    first, second, third = (Config(work=str(tmp_path / name)) for name in ("first place?", "second", "third"))
    uri = record(first)
    other = record(first.model_copy(update={"tracking": first.tracking.model_copy(update={"experiment": "other"})}))
    (tmp_path / "first place?").rename(tmp_path / "second")
    assert content(second, uri) == content(second, other) == "content"
    newer = record(second)
    assert not (tmp_path / "first place?").exists()
    (tmp_path / "second").rename(tmp_path / "third")
    assert [content(third, model) for model in (uri, other, newer)] == ["content"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["third"]


def test_a_copy_of_a_work_folder_uses_its_own_files(tmp_path: Path) -> None:
    first, copy = Config(work=str(tmp_path / "first")), Config(work=str(tmp_path / "copy"))
    uri = record(first)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    files = len(list((tmp_path / "first").rglob("*")))
    record(copy)
    assert len(list((tmp_path / "first").rglob("*"))) == files
    assert content(first, uri) == content(copy, uri) == "content"
    (tmp_path / "link").symlink_to(tmp_path / "first")
    assert content(Config(work=str(tmp_path / "link")), uri) == "content"
    with sqlite3.connect(tmp_path / "first" / "mlflow.db") as connection:  # the same folder by another name
        (place,) = connection.execute("SELECT artifact_location FROM experiments WHERE name = 'medfocus'").fetchone()
    assert place == (tmp_path / "first" / "mlartifacts").as_uri()


def test_other_paths_stay_when_the_work_folder_moves(tmp_path: Path) -> None:
    config = Config(work=str(tmp_path / "first"))
    record(config)
    mlflow.create_experiment("mine", artifact_location=(tmp_path / "mine").as_uri())
    mlflow.create_experiment("remote", artifact_location="s3://bucket/mlartifacts")
    (tmp_path / "first").rename(tmp_path / "second")
    runs.connect(Config(work=str(tmp_path / "second")))
    assert mlflow.get_experiment_by_name("mine").artifact_location == (tmp_path / "mine").as_uri()
    assert mlflow.get_experiment_by_name("remote").artifact_location == "s3://bucket/mlartifacts"


def test_a_deleted_run_is_followed_by_a_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(work=str(tmp_path))
    with runs.run("score", config) as first:
        pass
    mlflow.MlflowClient().delete_run(first.info.run_id)
    with runs.run("score", config, resume=first.info.run_id) as again:
        runs.log_parameters({"model_version": "m/1"})
    assert again.info.run_id != first.info.run_id
    assert [record.message for record in caplog.records if record.name == "medfocus"] == [
        "the MLflow run of the earlier call was deleted; a new one begins"
    ]
    assert mlflow.get_run(again.info.run_id).info.status == "FINISHED"


def test_the_error_about_a_run_deleted_while_it_runs_has_a_mend(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="the same call goes on with a new run") as caught:
        with runs.run("score", Config(work=str(tmp_path))) as active:
            mlflow.MlflowClient().delete_run(active.info.run_id)
            runs.log_metrics({"rows": 1})
    assert "\n" not in str(caught.value)


def test_the_error_about_a_deleted_experiment_has_a_mend(tmp_path: Path) -> None:
    config = Config(work=str(tmp_path))
    with runs.run("score", config) as first:
        pass
    mlflow.MlflowClient().delete_experiment(first.info.experiment_id)
    with pytest.raises(TrackingError, match=f"--experiment-id {first.info.experiment_id}") as caught:
        with runs.run("score", config, resume=first.info.run_id):
            pass
    assert "tracking.experiment" in str(caught.value) and "\n" not in str(caught.value)
    mlflow.MlflowClient().restore_experiment(first.info.experiment_id)
    with runs.run("score", config, resume=first.info.run_id) as again:
        pass
    assert again.info.run_id == first.info.run_id


@pytest.mark.parametrize(
    ("uri", "mend"),
    [
        ("postgresql://doctor:secret-word@127.0.0.1/runs", "pip install 'medfocus[postgres]' and begin the URI with"),
        ("mysql://doctor:secret-word@127.0.0.1/runs", "pip install 'medfocus[mysql]' and begin the URI with"),
        ("mssql+pyodbc://doctor:secret-word@127.0.0.1/runs", "pip install pyodbc"),
        ("postgresql+nothing://doctor:secret-word@127.0.0.1/runs", "correct MLFLOW_TRACKING_URI"),
        ("postgres://doctor:secret-word@127.0.0.1/runs", "correct MLFLOW_TRACKING_URI"),
        ("file:///data/mlruns", "unset MLFLOW_TRACKING_URI to have one in the work folder, or move the runs with"),
        ("/data/mlruns", "mlflow migrate-filestore"),
        ("sqlite:////proc/nothing/mlflow.db", "cannot be made"),
    ],
)
def test_the_error_about_an_unusable_store_is_one_line_with_a_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, mend: str
) -> None:
    for driver in ("psycopg", "psycopg2", "MySQLdb", "pyodbc"):
        monkeypatch.setitem(sys.modules, driver, None)  # as on a machine that lacks it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as caught:
        runs.connect(Config(work=str(tmp_path)))
    assert mend in str(caught.value) and "secret-word" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_error_about_a_damaged_store_has_a_mend(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TrackingError, match=r"the file is damaged; restore it"):
        runs.connect(Config(work=str(tmp_path)))


def test_the_error_about_an_impossible_work_folder_has_a_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="set work to a folder that can be written"):
        runs.connect(Config(work=str(tmp_path / "file" / "work")))


def test_an_empty_database_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with runs.run("pack", Config(work=str(tmp_path))):
        pass
    assert len(runs_of(tmp_path)) == 1
