"""A trained model: the learned prompts as safetensors, and a JSON that says what they fit on."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.data.commit import settings_key
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models.calibration import Calibration
from medfocus.pipeline.models.foundation import Foundation
from medfocus.pipeline.models.held_out import HeldOut
from medfocus.pipeline.models.prompts import Prompts
from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.weights import WeightsError, read_state_dict

PROMPTS_FILE, SETTINGS_FILE = "prompts.safetensors", "prompts.json"


@dataclass(frozen=True)
class Model:
    """Learned prompts, their settings, the foundation they fit on, and how sure they may be.

    ``held_out`` says of which rows the calibration is; None in a model of a version that did not record it.
    """

    settings: PromptSettings
    state: dict[str, torch.Tensor]
    foundation: Foundation
    calibration: Calibration
    held_out: HeldOut | None = None

    def save(self, folder: Path) -> None:
        """Write the two files of the model into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state, folder / PROMPTS_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(self._content(), indent=1, sort_keys=True) + "\n")

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, the foundation, the calibration and every learned number."""
        tensors = {name: value.numpy().tobytes().hex() for name, value in self.state.items()}
        return settings_key(self._content() | tensors)

    def prompts(self, accept_at: float | None) -> Prompts:
        """What actors need; ``accept_at`` in place of the fitted confidence where it is given."""
        calibration = self.calibration if accept_at is None else replace(self.calibration, accept_at=accept_at)
        return Prompts(self.settings, {name: value.numpy() for name, value in self.state.items()}, calibration)

    def _content(self) -> dict[str, Any]:
        parts = {"foundation": vars(self.foundation), "calibration": vars(self.calibration)}
        if self.held_out is not None:
            parts["held_out"] = vars(self.held_out)
        return {"settings": self.settings.to_json(), **parts}


def load_model(folder: Path, name: str | None = None) -> Model:
    """A model from the folder that holds its two files.

    Args:
        folder: where the files are.
        name: how the model is called in messages; by the folder's name if left out.

    Raises:
        UsageError: a file is missing, or is not what it should be.
    """
    name = name or folder.name
    try:
        content = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        settings = PromptSettings.from_json(content["settings"])
        foundation = Foundation(**content["foundation"])
        calibration = Calibration(**content["calibration"])
        held_out = HeldOut(**content["held_out"]) if "held_out" in content else None
        return Model(settings, read_state_dict(folder / PROMPTS_FILE), foundation, calibration, held_out)
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else PROMPTS_FILE
        raise UsageError(f"{name}: its file {missing} is missing; give a model that train made") from error
    except (OSError, KeyError, TypeError, ValueError, WeightsError) as error:
        raise UsageError(f"{name}: not a MedFocus model ({reason(error)}); give one that train made") from error
