"""Presets: their place between the defaults and what a user sets, and their fit to the models."""

from pathlib import Path

import pytest

import medfocus
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.presets import PRESETS


def test_a_preset_goes_before_the_defaults_and_after_what_a_user_sets(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("clip:\n  cut: 7\n  views: 3\npack:\n  rows_per_shard: 5\n")
    config = load_config(str(file), ["clip.views=2", "segment.batch_size=1"], "sam2.1-tiny+vit-b-16")
    assert (config.clip.model, config.clip.weights) == ("ViT-B-16", "laion2b_s34b_b88k")
    assert (config.clip.cut, config.clip.views, config.pack.rows_per_shard) == (7, 2, 5)
    assert config.segment.model == "facebook/sam2.1-hiera-tiny" and config.segment.batch_size == 1
    file.write_text("clip:\n")  # no value: what stands for a section is told as without a preset
    with pytest.raises(UsageError, match="clip"):
        load_config(str(file), (), "sam2.1-tiny+vit-b-16")


def test_the_starter_preset_is_the_default() -> None:
    assert medfocus.load_config(preset="starter") == Config()
    with pytest.raises(UsageError, match=r"--preset large: unknown; choose one of starter, sam2\.1-tiny\+vit-b-16,"):
        load_config(preset="large")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_the_weights_of_its_models(name: str) -> None:
    """What ``weights fetch`` takes is what the models are looked up by."""
    config, weights = load_config(preset=name), PRESETS[name].weights
    clip = f"{config.clip.model}/{config.clip.weights}" if config.clip.weights else config.clip.model
    assert weights in ((), (config.segment.model, clip))
    assert bool(weights) == (config.segment.model != "starter")


def test_the_page_has_the_presets() -> None:
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    for name, preset in PRESETS.items():
        (row,) = (line.split(" | ") for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert row[3].startswith(f"{preset.settings['clip']['cut']} of ")
        assert row[4] in preset.cost and row[5].removesuffix(" |") in preset.cost
