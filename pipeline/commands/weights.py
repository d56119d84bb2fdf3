"""``medfocus weights``: a folder of weights for machines without internet.

``fetch`` copies models from the hub into a folder, and ``check`` compares such a folder with its ``weights.json``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.console.logs import show
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.models import mirror
from medfocus.pipeline.models.hub_models import HUB, find_on_hub
from medfocus.pipeline.models.mirror_fetch import Count, mirror_model
from medfocus.pipeline.presets import PRESETS
from medfocus.stages.weights import load_tokenizer


def run(config: Config, action: str, names: Sequence[str], to: str | None) -> dict[str, Any]:
    """Fetch models into a folder, or check a folder.

    Args:
        config: the configuration, which names the storage service.
        action: ``fetch`` or ``check``.
        names: for ``fetch`` the models, for ``check`` the one folder.
        to: the folder that ``fetch`` writes to.

    Returns:
        Of ``fetch``: ``folder``; ``models``, as ``weights.json`` has them; ``settings``, for each pair of models the
        ``section.key=value`` that use it; the number of files ``copied`` and ``kept`` and of ``bytes`` copied. Of
        ``check``: ``folder``, ``models`` and the number of ``files``.

    Raises:
        UsageError: the call is wrong.
        MedFocusError: a model cannot be fetched, or a file of the folder is wrong.
    """
    if action == "fetch":
        if to is None:
            raise UsageError("weights fetch: no folder to write to; name it with --to")
        return _fetch(names, to, config)
    if len(names) != 1 or to is not None:
        raise UsageError("weights check: takes one folder and no --to; give the folder that fetch wrote")
    return _check(names[0], config)


def _fetch(names: Sequence[str], to: str, config: Config) -> dict[str, Any]:
    root, count = locate(to, config.storage), Count()
    models: dict[str, mirror.MirrorModel] = {}
    for name in _models(names):
        models[name] = mirror_model(find_on_hub(name), root, count)
        mirror.add_to_manifest(root, {name: models[name]})
    for name, model in models.items():
        show(f"# {name}: licence {model.licence}, revision {model.files[model.weights].revision}")
    all_settings = [_settings(root, pair) for pair in _pairs(models)]
    for settings in all_settings:
        show(yaml.safe_dump(settings, sort_keys=False).rstrip())
        show("# or: " + " ".join(f"--set {setting}" for setting in _assignments(settings)))
    for name in names:
        if name in PRESETS:
            show(f"# or: --preset {name} --set storage.weights={root.uri}")
    return {
        "folder": root.uri,
        "models": {name: model.model_dump() for name, model in models.items()},
        "settings": [_assignments(settings) for settings in all_settings],
        **vars(count),
    }


def _models(names: Sequence[str]) -> list[str]:
    """Names of models, once each; a preset stands for its models."""
    models: dict[str, None] = {}
    for name in names:
        if name in PRESETS and not PRESETS[name].weights:
            raise UsageError(f"{name}: comes along with MedFocus; there is nothing to fetch")
        models |= dict.fromkeys(PRESETS[name].weights if name in PRESETS else (name,))
    return list(models)


def _pairs(models: Mapping[str, mirror.MirrorModel]) -> list[dict[str, mirror.MirrorModel]]:
    """The models in groups of one SAM2 and one CLIP, in their order; groups at the end may have one of them alone."""
    pairs: list[dict[str, mirror.MirrorModel]] = []
    for name, model in models.items():
        free = (pair for pair in pairs if all(other.kind != model.kind for other in pair.values()))
        pair = next(free, None)
        if pair is None:
            pairs.append(pair := {})
        pair[name] = model
    return pairs


def _settings(root: Location, models: Mapping[str, mirror.MirrorModel]) -> dict[str, dict[str, str]]:
    """The configuration that uses models of the folder: values by section and key."""
    settings = {"storage": {"weights": root.uri}}
    for name, model in models.items():
        architecture, _, tag = name.partition("/")
        tagged = model.kind == "clip" and not name.startswith(HUB)
        named = {"model": architecture, "weights": tag} if tagged else {"model": name}
        section = "clip" if model.kind == "clip" else "segment"
        settings[section] = {**named, "sha256": model.files[model.weights].sha256}
    return settings


def _assignments(settings: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Settings as ``section.key=value``."""
    return [f"{section}.{key}={value}" for section, values in settings.items() for key, value in values.items()]


def _check(folder: str, config: Config) -> dict[str, Any]:
    root = locate(folder, config.storage)
    models = mirror.read_manifest(root).models
    files = sum(len(model.files) for model in models.values())
    wrong = 0
    for name, model in models.items():
        lines = list(mirror.wrong_files(root, name, model)) or list(_unopened(name, model, root))
        wrong += len(lines)
        for line in lines or [f"{len(model.files)} files, licence {model.licence}"]:
            show(f"{'wrong' if lines else 'ok   '}  {name}: {line}")
    if wrong:
        raise MedFocusError(f"{root.uri}: {wrong} of {files} files are wrong; the lines above say the mend")
    return {"folder": root.uri, "models": list(models), "files": files}


def _unopened(name: str, model: mirror.MirrorModel, root: Location) -> Iterator[str]:
    """Open the tokenizer of a CLIP as a node without internet does; yields a line where that fails."""
    if not name.startswith(HUB):  # the packages sam2 and open_clip hold all but the weights
        return
    with TemporaryDirectory() as folder:
        mirror.copy_settings(root, name, model, Path(folder))
        try:
            load_tokenizer(folder)(["a text"])
        except Exception as error:  # transformers raises many kinds
            yield f"its tokenizer cannot be opened ({reason(error)}); install medfocus[biomedclip], and fetch it again"
