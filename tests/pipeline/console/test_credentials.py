import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.pipeline.console.credentials import without_credentials

LETTERS = st.text(st.characters(exclude_characters="/\"'<>", exclude_categories=["Z", "C"]), min_size=1, max_size=12)


@given(st.sampled_from(["http", "https", "postgresql+pg8000", "s3"]), LETTERS, LETTERS)
def test_what_stands_before_the_host_of_a_uri_is_left_out(scheme: str, user: str, password: str) -> None:
    text = f"no answer from {scheme}://{user}:{password}@host.example:5000/runs; mail it@host.example"
    assert without_credentials(text) == f"no answer from {scheme}://host.example:5000/runs; mail it@host.example"


def test_a_text_without_credentials_stays_as_it_is() -> None:
    for text in ("see sqlite:////data/a@b/mlflow.db", "models:/chest@champion", "s3://bucket/a@b", "1 < 2 :// @"):
        assert without_credentials(text) == text


def test_secrets_of_the_environment_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://doctor:pa/ss@wo/rd@host/")
    text = "key wJalrXUtnFEMI/K7MDENG, password correct horse, at http://doctor:pa/ss@wo/rd@host/api"
    assert without_credentials(text) == "key ***, password ***, at http://host/api"
