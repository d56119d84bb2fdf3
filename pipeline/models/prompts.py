"""The learned part of a model as it travels to workers."""

from dataclasses import dataclass

import numpy as np

from medfocus.pipeline.models.calibration import Calibration
from medfocus.stages.prompt_settings import PromptSettings


@dataclass(frozen=True)
class Prompts:
    """The learned part of a model, as it travels to actors."""

    settings: PromptSettings
    state: dict[str, np.ndarray]
    calibration: Calibration
