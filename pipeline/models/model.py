"""A trained model in two files: the learned prompts as safetensors, their settings and foundation as JSON."""

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
    """A trained model.

    Args:
        settings: shape and kind of the prompts, and the classes.
        state: learned tensors by name.
        foundation: the frozen models that the prompts were trained on.
        calibration: temperature and acceptance threshold.
        held_out: how the rows of the calibration were held out; None where an earlier version of MedFocus, which did
            not record it, trained the model.
    """

    settings: PromptSettings
    state: dict[str, torch.Tensor]
    foundation: Foundation
    calibration: Calibration
    held_out: HeldOut | None = None

    def save(self, folder: Path) -> None:
        """Write the two files of the model into a folder, which is made if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state, folder / PROMPTS_FILE)
        (folder / SETTINGS_FILE).write_text(json.dumps(self._content(), indent=1, sort_keys=True) + "\n")

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, the foundation, the calibration and every learned number, as hexadecimal digits."""
        tensors = {name: value.numpy().tobytes().hex() for name, value in self.state.items()}
        return settings_key(self._content() | tensors)

    def prompts(self, accept_at: float | None) -> Prompts:
        """The learned part for the actors that score.

        Args:
            accept_at: acceptance threshold in place of the fitted one; None keeps the fitted one.
        """
        calibration = self.calibration if accept_at is None else replace(self.calibration, accept_at=accept_at)
        return Prompts(self.settings, {name: value.numpy() for name, value in self.state.items()}, calibration)

    def _content(self) -> dict[str, Any]:
        content = {"foundation": vars(self.foundation), "calibration": vars(self.calibration)}
        if self.held_out is not None:
            content["held_out"] = vars(self.held_out)
        return {"settings": self.settings.to_json(), **content}


def load_model(folder: Path, name: str | None = None) -> Model:
    """Read a model from the folder that holds its two files.

    Args:
        folder: folder of the files.
        name: name of the model in messages; the folder's name if left out.

    Raises:
        UsageError: a file is missing or damaged, or belongs to something else than a model.
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
