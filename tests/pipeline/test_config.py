import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medfocus.pipeline.config import Config, documented_keys, load_config
from medfocus.pipeline.errors import UsageError

KEYS = list(documented_keys())


def test_every_key_is_documented() -> None:
    assert [(name, default) for name, default, _ in KEYS] == [(name, field.default) for name, field in fields()]
    assert all(description for _, _, description in KEYS)


@given(st.sampled_from(KEYS))
def test_any_key_can_be_set_to_its_default(key: tuple) -> None:
    name, default, _ = key
    assert (
        load_config(None, [f"{name}={yaml.safe_dump(default, default_flow_style=True).split(chr(10))[0]}"]) == Config()
    )


def values_of(field: FieldInfo) -> st.SearchStrategy:
    """Values that a key takes, by its type and its bounds."""
    bounds = {name: getattr(bound, name) for bound in field.metadata for name in ("ge", "gt", "le", "lt", "min_length")
              if hasattr(bound, name)}  # fmt: skip
    kind = next(of for of in (get_args(field.annotation) or (field.annotation,)) if of is not type(None))
    if any(hasattr(bound, "pattern") and bound.pattern for bound in field.metadata):
        pattern = next(bound.pattern for bound in field.metadata if getattr(bound, "pattern", None))
        return st.text("0123456789abcdefABCDEF", min_size=64, max_size=64) if "64" in pattern else st.just("a {} b")
    if isinstance(kind, str):
        return st.sampled_from(get_args(field.annotation))
    if kind is bool:
        return st.booleans()
    if kind is int:
        step = next((bound.multiple_of for bound in field.metadata if hasattr(bound, "multiple_of")), 1)
        return st.integers(-(-bounds.get("ge", -(10**6)) // step), bounds.get("le", 10**6) // step).map(step.__mul__)
    if kind is float:
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        return st.floats(low, high if high is not None else 1e6, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
    assert kind is str
    # What JSON's escapes and YAML's have in common.
    letters = st.characters(max_codepoint=0xD7FF, exclude_characters="\x7f")
    return st.text(letters, min_size=bounds.get("min_length", 0), max_size=20)


def fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_allowed_value_of_any_key_arrives_and_moves_no_other(data: st.DataObject) -> None:
    name, field = data.draw(st.sampled_from(list(fields())))
    value = data.draw(values_of(field))
    if name == "segment.min_area":
        value = min(value, 0.4)  # below max_area, whose check has its own test
    if name == "segment.max_area":
        value = max(value, 0.1)
    tree = load_config(None, [f"{name}={json.dumps(value)}"]).model_dump()
    section, _, key = name.rpartition(".")
    assert (tree[section] if section else tree)[key] == value
    (tree[section] if section else tree)[key] = field.default
    assert tree == Config().model_dump()


@pytest.mark.parametrize(("name", "field"), [pytest.param(*item, id=item[0]) for item in fields()])
def test_a_value_outside_the_bounds_is_refused_by_name(name: str, field: FieldInfo) -> None:
    for bound in field.metadata:
        for side, outside in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if getattr(bound, side, None) is not None:
                with pytest.raises(UsageError, match=f"^{name}: "):
                    load_config(None, [f"{name}={getattr(bound, side) + outside}"])


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
        (
            "segment.points_per_side=900",
            "segment.points_per_side: input should be less than or equal to 64, found '900'",
        ),
        ("segment.min_area=0.9", "segment: min_area 0.9 must be below max_area 0.5"),
        ("model.focus=all", "model.focus: input should be 'none'"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("train", "expected section.key=value"),
        ("seed.deep=1", "seed: input should be a valid integer"),
        ("clip.cut=[1", "clip.cut: input should be a valid integer, unable to parse string as an integer, found '[1'"),
        ("model.template=no place", "model.template"),
        ("model.template={} of {name}", "must have {} once, for the class, and no other field in braces"),
        ("model.template={} of {}", "must have {} once"),
        ("model.template={{}}", "must have {} once"),
        ("model.template={} }", "has a brace without its pair"),
        ("model.template={} {", "has a brace without its pair"),
        ("model.template={!r} {}", "must have {} once"),
        ("tracking.experiment=", "tracking.experiment: input should be a valid string"),
        (f"tracking.experiment={'x' * 251}", "at most 250 characters"),
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
    assert "\n" not in str(caught.value)


# Each means something else in YAML, or nothing.
TEXTS = ["2024", "007", "0x1f", "1e-3", "1_000", "null", "~", "on", "No", "2024-01-01", "2024-13-45", "12:30:45"]
TEXTS += ["a: b", "- a", "[a", "{a", "a #b", "#b", "*a", "&a", "!a", "%a", "@a", "`a", "| a", "> a", "'a", '"a', "é"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_it_is_written(text: str, tmp_path: Path) -> None:
    assert load_config(None, [f"tracking.experiment={text}"]).tracking.experiment == text
    assert load_config(None, [f"work= {text} "]).work == text
    quoted = f"tracking.experiment={json.dumps(text)}"
    assert load_config(None, [quoted]).tracking.experiment == text


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_that_is_not_quoted_is_taken_as_it_is_written(text: str) -> None:
    if (plain := text.strip()) and plain[0] not in "'\"":
        assert load_config(None, [f"work={text}"]).work == plain


@pytest.mark.parametrize("text", ["2024", "007", "1e-3", "null", "~", "on", "2024-01-01", "2024-13-45", "12:30:45"])
def test_a_file_holds_texts_that_yaml_would_read_as_something_else(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"work: {text}\ntracking:\n  experiment: {text} # why\nclip: {{weights: {text}}}\n")
    config = load_config(str(file))
    assert config.work == config.tracking.experiment == text
    assert config.clip.weights == (None if text in ("null", "~") else text)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed=1_000", 1000),
        ("seed=5.0", 5),
        ("seed=010", 10),
        ("seed='5'", 5),
        ("train.learning_rate=1e3", 1000.0),
        ("train.learning_rate=5e-3", 0.005),
        ("storage.shared=yes", True),
        ("storage.shared=Off", False),
        ("cluster.cpus=~", None),
        ("cluster.cpus=", None),
        ("segment.weights=null", None),
        ('segment.weights="null"', "null"),
        ('segment.weights=""', ""),
        ("work=${HOME}/${oc.env:X}", "${HOME}/${oc.env:X}"),
    ],
)
def test_the_type_of_a_key_says_what_a_text_means(setting: str, value: object, tmp_path: Path) -> None:
    name, text = setting.split("=")
    section, _, key = name.rpartition(".")
    file = tmp_path / "c.yaml"
    file.write_text(f"{section}:\n  {key}: {text}\n" if section else f"{key}: {text}\n")
    for config in (load_config(None, [setting]), load_config(str(file))):
        found = getattr(getattr(config, section) if section else config, key)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("setting", ["seed=yes", "seed=1:30", "seed=0x10", "seed=[1]", "train.learning_rate=on"])
def test_what_only_yaml_takes_for_a_number_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=r"input should be a valid (integer|number)"):
        load_config(None, [setting])


def test_the_template_of_x_rays_needs_no_quotes() -> None:
    assert load_config(None, ["model.template=chest x-ray: {}"]).model.template == "chest x-ray: {}"
    assert load_config(None, ["clip.weights="]).clip.weights is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_whatever_the_locale(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes("model:\n  template: 'Röntgen 胸部: {}'\n".encode(encoding))
    read = f"from medfocus.pipeline.config import load_config; print(ascii(load_config({str(file)!r}).model.template))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ascii("Röntgen 胸部: {}")


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes("model: {template: 'Röntgen {}'}".encode("cp1252"))
    with pytest.raises(UsageError, match="not a text in UTF-8; save it as UTF-8"):
        load_config(str(file))


def test_a_mapping_where_a_text_belongs_is_told_with_the_mend(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model:\n  template: {chest: x}\n")
    with pytest.raises(UsageError, match=r"model\.template: .*put it in quotes"):
        load_config(str(file))
    file.write_text("model:\n  template: chest x-ray: {}\n")
    with pytest.raises(UsageError, match=r"not YAML in line 2 .*in quotes"):
        load_config(str(file))
