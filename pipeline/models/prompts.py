"""The learned part of a model as workers receive it."""

from dataclasses import dataclass

import numpy as np

from medfocus.pipeline.models.calibration import Calibration
from medfocus.stages.prompt_settings import PromptSettings


@dataclass(frozen=True)
class Prompts:
    """The learned part of a model as plain arrays, which Ray sends to workers.

    Args:
        settings: shape and kind of the prompts, and the classes.
        state: learned arrays by name, as ``PromptedCLIP.load_learned`` takes them.
        calibration: temperature and acceptance threshold.
    """

    settings: PromptSettings
    state: dict[str, np.ndarray]
    calibration: Calibration
