"""The frozen CLIP of a configuration."""

from typing import Any

from medfocus.pipeline.config import Config
from medfocus.pipeline.models import model_files
from medfocus.stages.weights import load_clip, load_tokenizer


def load_frozen_clip(config: Config) -> tuple[Any, Any]:
    """Load the CLIP that ``clip.model`` and ``clip.weights`` name, and its tokenizer."""
    source = model_files.resolve_clip(config.clip, config.storage)
    return load_clip(source.model, source.checkpoint, source.preprocess), load_tokenizer(source.model)
