"""A model that nobody trained: it answers as zero-shot CLIP does, at the cost of a trained one."""

from benchmarks.frozen_clip import load_frozen_clip
from medfocus.pipeline.config import Config
from medfocus.pipeline.models.calibration import Calibration
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.model import Model
from medfocus.stages.prompted_clip import PromptedCLIP


def untrained_model(config: Config, classes: tuple[str, ...]) -> Model:
    """Build a model whose prompts have their initial values, and which accepts every row.

    Args:
        config: the configuration; ``clip`` names the frozen tower and ``model`` the learned parts.
        classes: names of the classes, in the order of the logits.

    Returns:
        The model, with a calibration of temperature 1.
    """
    settings = config.model.prompts(classes, config.clip.cut)
    state = PromptedCLIP(*load_frozen_clip(config), settings).learned_state()
    return Model(settings, state, Foundation.of(config), Calibration(temperature=1.0, accept_at=0.0))
