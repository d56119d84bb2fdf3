"""What a job is given: its command line, its configuration and its environment."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.pipeline.commands.parser import build_parser
from medfocus.pipeline.commands.submit import _settings, job_arguments, job_variables
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.errors import UsageError

SCORE = ["score", "s3://a/shards", "s3://a/out", "--model", "models:/chest/1"]


def arguments(*line: str, config: Config | None = None, **options: bool) -> list[str]:
    given = {"json": False, "verbose": False, "quiet": False} | options
    return job_arguments(config or Config(), line, **given)


def test_a_command_line_stays_as_it_is() -> None:
    assert arguments(*SCORE) == arguments("medfocus", *SCORE) == SCORE
    assert arguments(*SCORE, json=True, quiet=True) == ["score", "--json", "--quiet", *SCORE[1:]]
    assert arguments(*SCORE, "--json", json=True) == [*SCORE, "--json"]


@pytest.mark.parametrize("option", [["--config", "FILE"], ["--config=FILE"], ["--conf", "FILE"]])
def test_the_content_of_a_configuration_file_takes_its_place(tmp_path: Path, option: list[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("seed: 1\nscore: {max_quarantined: 0.5}\nmodel: {template: 'null {}'}\ncluster: {address: auto}\n")
    given = [text.replace("FILE", str(file)) for text in option]
    outer = load_config(None, ["seed=7", "train.epochs=3"])
    sent = arguments(SCORE[0], *given, *SCORE[1:], "--set", "score.max_quarantined=0.25", config=outer)
    assert not [text for text in sent if "conf" in text]
    parsed = build_parser().parse_args(sent)
    assert (parsed.config, parsed.shards, parsed.model_uri) == (None, "s3://a/shards", "models:/chest/1")
    config = load_config(None, parsed.set)
    assert (config.seed, config.train.epochs, config.score.max_quarantined) == (1, 3, 0.25)
    assert config.model.template == "null {}" and config.cluster.address is None


@given(weights=st.text() | st.none(), shared=st.booleans(), share=st.floats(0, 1), seed=st.integers(0))
def test_a_value_is_read_as_it_was_set(weights: str | None, shared: bool, share: float, seed: int) -> None:
    sections = {"segment": {"weights": weights}, "storage": {"shared": shared}, "train": {"target_sensitivity": share}}
    config = Config.model_validate({"seed": seed, **sections})
    assert load_config(None, list(_settings(config))) == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["score", "s3://a/b", "s3://a/c"], "required: --model; correct the command behind --"),
        (["scores"], "invalid choice: 'scores'"),
        (["medfocus"], "invalid choice: 'medfocus'"),
        (["score", "--help"], "run medfocus score --help on this machine"),
        (["submit", "--", "doctor"], "submit cannot be submitted; it runs on this machine"),
        (["medfocus", "jobs"], "jobs cannot be submitted"),
        ([*SCORE, "--set", "score.max_quarantine=1"], "unknown configuration key"),
        ([*SCORE, "--config", "absent.yaml"], "--config absent.yaml: No such file"),
        ([*SCORE, "--set", "cluster.address=auto"], "cluster.address: a job runs on the cluster"),
        (["score", "shards", *SCORE[2:]], "shards: .*give a URI such as s3://, or an absolute path"),
        (["pack", "s3://a/b", "s3://a/c", "--labels", "labels.csv"], "labels.csv: .*a relative path leads nowhere"),
        (
            ["pack", "s3://a/b", "s3://a/c", "--labels", "s3://a/labels.csv", "--labels", "more.csv"],
            "more.csv: .*a relative path leads nowhere",
        ),
        *(
            (["pack", "s3://a/b", "s3://a/c", f"--{option}", "file"], "file: .*a relative path leads nowhere")
            for option in ("audit", "mapping", "withdraw")
        ),
        (["demo", "--work", "work"], "work: .*a relative path leads nowhere"),
        (["score", "s3://key:word@a/shards", *SCORE[2:]], "s3://a/shards: holds credentials"),
    ],
)
def test_a_command_that_cannot_be_a_job_is_refused(line: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        arguments(*line)


def test_two_ways_to_be_told_less_or_more_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="not allowed with argument"):
        arguments(*SCORE, "--verbose", quiet=True)


def test_a_secret_of_the_environment_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    with pytest.raises(UsageError, match=r"work=\*\*\*: holds credentials"):
        arguments(*SCORE, "--set", "work=verysecret")


def test_a_job_gets_what_says_where_things_are() -> None:
    environment = {
        "MLFLOW_TRACKING_URI": "https://reader:word@mlflow.example.org",
        "MLFLOW_TRACKING_PASSWORD": "word",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_REGION": "eu-central-1",
        "AWS_SECRET_ACCESS_KEY": "verysecret",
        "AWS_PROFILE": "me",
        "RAY_AUTH_TOKEN": "token",
        "PATH": "/bin",
    }
    sent = {"MLFLOW_TRACKING_URI": "https://mlflow.example.org", "AWS_REGION": "eu-central-1"}
    assert job_variables(environment) == sent
    for local in ("sqlite:////home/me/mlflow.db", "http://localhost:5000", "file:///home/me/runs", "/home/me/runs"):
        assert job_variables({"MLFLOW_TRACKING_URI": local}) == {}
