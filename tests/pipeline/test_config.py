from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config, documented_keys, load_config
from pipeline.errors import UsageError

KEYS = list(documented_keys())


def test_every_key_is_documented() -> None:
    assert len(KEYS) > 30
    assert all(description for _, _, description in KEYS)


@given(st.sampled_from(KEYS))
def test_any_key_can_be_set_to_its_default(key: tuple) -> None:
    name, default, _ = key
    assert (
        load_config(None, [f"{name}={yaml.safe_dump(default, default_flow_style=True).split(chr(10))[0]}"]) == Config()
    )


@given(st.text("abcdefgh_", min_size=3, max_size=12))
def test_unknown_keys_are_refused_by_name(name: str) -> None:
    if name in {key.split(".")[-1] for key, _, _ in KEYS}:
        return
    with pytest.raises(UsageError, match=f"segment.{name}: unknown configuration key"):
        load_config(None, [f"segment.{name}=1"])


def test_a_slip_is_told_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"did you mean segment\.points_per_side"):
        load_config(None, ["segment.points_per_sid=4"])


def test_the_call_goes_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 4\ntrain:\n  epochs: 3\n  batch_size: 5\n")
    config = load_config(str(file), ["train.epochs=9"])
    assert (config.seed, config.train.epochs, config.train.batch_size) == (4, 9, 5)
    assert config.train.patience == Config().train.patience


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("segment.points_per_side=900", "segment.points_per_side: input should be less than or equal to 64, found 900"),
        ("segment.min_area=0.9", "segment: min_area 0.9 must be below max_area 0.5"),
        ("model.focus=all", "model.focus: input should be 'none'"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("train", "expected section.key=value"),
        ("seed.deep=1", "seed: input should be a valid integer"),
        ("clip.cut=[1", "not YAML"),
        ("model.template=no place", "model.template"),
    ],
)
def test_wrong_values_are_one_line_that_names_the_key(setting: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(None, [setting])
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "told"), [("- 1", "found list"), ("a: [", "not YAML"), (None, "No such file")])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=told) as caught:
        load_config(str(file))
    assert str(file) in str(caught.value)
