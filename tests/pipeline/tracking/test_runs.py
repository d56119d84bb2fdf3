from pathlib import Path

import mlflow
import pytest

from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.tracking import runs
from medfocus.pipeline.tracking.store import TrackingError
from tests import servers


@pytest.fixture
def config(tmp_path: Path, mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    return load_config(None, [f"work={tmp_path}", "train.epochs=7", f"tracking.experiment={tmp_path.name}"])


def test_a_run_has_its_configuration_metrics_and_data(config: Config) -> None:
    with runs.run("score", config) as active:
        runs.log_parameters({"model_version": "m/1"})
        runs.log_metrics({"rows": 3, "share": 0.5, "name": "left out"})
        runs.log_history([{"loss": 2.0}, {"loss": 1.0}])
        runs.log_dataset("shards", "0123456789abcdef" * 4, "score")
    run = mlflow.get_run(active.info.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["medfocus.command"] == "score"
    assert run.data.params["train.epochs"] == "7" and run.data.params["model_version"] == "m/1"
    assert run.data.metrics == {"rows": 3.0, "share": 0.5, "loss": 1.0}
    history = mlflow.MlflowClient().get_metric_history(active.info.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(0, 2.0), (1, 1.0)]
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "shards" and ("0123456789abcdef" * 4).startswith(data.dataset.digest)


def test_two_work_folders_in_one_process_keep_their_own_store(tmp_path: Path) -> None:
    for name in ("first", "second"):
        config = load_config(None, [f"work={tmp_path / name}"])
        with runs.run("pack", config) as active:
            pass
        store = mlflow.MlflowClient(f"sqlite:///{tmp_path / name / 'mlflow.db'}")
        assert store.get_run(active.info.run_id).info.status == "FINISHED"


def test_more_metrics_than_one_request_may_have_are_all_logged(config: Config) -> None:
    values = {f"m{number}": float(number) for number in range(1201)}
    with runs.run("evaluate", config) as active:
        runs.log_metrics(values)
    assert mlflow.get_run(active.info.run_id).data.metrics == values


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_failed_and_an_interrupted_run_are_marked_so(config: Config, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), runs.run("train", config) as active:
        raise error
    assert mlflow.get_run(active.info.run_id).info.status == status


def test_a_run_is_continued_and_an_unknown_one_is_replaced_by_a_new_one(config: Config) -> None:
    with pytest.raises(ValueError), runs.run("score", config) as first:
        raise ValueError
    with runs.run("score", config, resume=first.info.run_id) as again:
        runs.log_parameters({"model_version": "m/1"})
    with runs.run("score", config, resume=again.info.run_id):
        runs.log_parameters({"model_version": "m/1"})
    assert again.info.run_id == first.info.run_id
    assert mlflow.get_run(first.info.run_id).info.status == "FINISHED"
    with runs.run("score", config, resume="0" * 32) as other:
        pass
    assert other.info.run_id not in (first.info.run_id, "0" * 32)


def test_credentials_of_an_endpoint_are_not_logged(config: Config) -> None:
    section = config.storage.model_copy(update={"s3_endpoint": "http://user:secret-word@127.0.0.1:9"})
    with runs.run("pack", config.model_copy(update={"storage": section})) as active:
        pass
    parameters = mlflow.get_run(active.info.run_id).data.params
    assert parameters["storage.s3_endpoint"] == "http://127.0.0.1:9"
    assert "secret-word" not in str(parameters)


def test_without_a_server_the_store_is_in_the_work_folder(tmp_path: Path) -> None:
    config = load_config(None, [f"work={tmp_path / 'new'}"])
    with runs.run("pack", config):
        mlflow.log_text("content", "file.txt")
    assert (tmp_path / "new" / "mlflow.db").is_file()
    assert [path.read_text() for path in (tmp_path / "new" / "mlartifacts").rglob("file.txt")] == ["content"]


def test_the_error_about_a_store_that_does_not_answer_has_no_password(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret-word@127.0.0.1:{servers.free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a user's own setting; ours waits longer
    with pytest.raises(TrackingError, match="start the server or correct MLFLOW_TRACKING_URI") as caught:
        runs.connect(config)
    assert "secret-word" not in str(caught.value) and "\n" not in str(caught.value)
