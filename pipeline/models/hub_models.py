"""What the name of a model stands for on the hub: the files of one or several repositories that make it complete."""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.models.hub import Repository, read_repository
from medfocus.stages.weights import CLIP_CONFIG, TEXT_CONFIG, sam2_hub_file

HUB = "hf-hub:"
# Weights of a CLIP in a folder, the first that is there.
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.txt")
# What says how a model may be used.
_TERMS = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, by its name there."""

    repository: Repository
    name: str


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Args:
        name: the name that the configuration has for it.
        kind: SAM2 or CLIP.
        weights: name of its weights file in ``files``.
        files: where each file comes from, by its name in the folder of the model.
    """

    name: str
    kind: Literal["sam2", "clip"]
    weights: str
    files: Mapping[str, HubFile]


def find_on_hub(name: str) -> HubModel:
    """The files of a model on the hub.

    Args:
        name: a SAM2 hub name, ``hf-hub:OWNER/NAME`` of a CLIP, or ``ARCHITECTURE/TAG`` of open_clip.

    Raises:
        UsageError: nothing has the name, or it cannot be mirrored.
        MedFocusError: the hub does not have the model, or does not answer.
    """
    if name.startswith(HUB):
        return _clip_repository(name)
    if (file := sam2_hub_file(name)) is not None:
        repository = read_repository(name)
        return HubModel(name, "sam2", file, _files(repository, (_first(repository, (file,)), *_TERMS)))
    return _clip_tag(name)


def pretrained_tag(model: str, tag: str) -> dict[str, Any] | None:
    """What open_clip knows of one of its pretrained tags; None where it knows no such tag of the model.

    Args:
        model: an architecture of open_clip.
        tag: what ``clip.weights`` has: a tag, a path or a URI.

    Raises:
        UsageError: the weights were trained with another activation than the architecture has.
    """
    if "/" in tag or "." in tag:  # a path or a URI; open_clip takes seconds to import
        return None
    import open_clip

    pretrained: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    if not pretrained:
        return None
    # open_clip only warns of another activation; the model would give wrong answers.
    quick_gelu = pretrained.get("quick_gelu", False)
    if quick_gelu != open_clip.get_model_config(model).get("quick_gelu", False):
        name = f"{model}-quickgelu" if quick_gelu else model.removesuffix("-quickgelu")
        raise UsageError(f"{tag}: these weights are not of {model} but of {name}; set clip.model={name}")
    return pretrained


def tag_files(pretrained: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The repository of a pretrained tag, and its weights file: the first of the names that is there.

    Of two formats it is the one that open_clip prefers, so that a model has one identity wherever it comes from.
    """
    repository, file = posixpath.split(pretrained["hf_hub"])
    names = (f"{file.removesuffix('.bin')}.safetensors", file) if file else (CLIP_WEIGHTS[0], CLIP_WEIGHTS[2])
    return repository, names


def _clip_repository(name: str) -> HubModel:
    repository = read_repository(name.removeprefix(HUB))
    weights = _first(repository, CLIP_WEIGHTS)
    config = _first(repository, (CLIP_CONFIG,))
    files = _files(repository, (config, weights, *TOKENIZER_FILES, *_TERMS))
    text = _text_settings(repository)
    if (tokenizer := text.get("hf_tokenizer_name")) and not _files(repository, TOKENIZER_FILES):
        # open_clip reads the tokenizer of a folder from that folder, and config.json says which class it has.
        files |= _files(read_repository(tokenizer), (*TOKENIZER_FILES, "config.json"))
    if encoder := text.get("hf_model_name"):
        other = read_repository(encoder)
        files[TEXT_CONFIG] = HubFile(other, _first(other, ("config.json",)))
    return HubModel(name, "clip", weights, files)


def _text_settings(repository: Repository) -> dict[str, Any]:
    """Settings of the text tower in the configuration of a CLIP."""
    try:
        content: dict[str, Any] = json.loads(repository.fetch(CLIP_CONFIG).read_text(encoding="utf-8"))
        return dict(content["model_cfg"]["text_cfg"])
    except (ValueError, KeyError, TypeError) as error:
        raise MedFocusError(f"{repository.name}: its {CLIP_CONFIG} is damaged; choose another model") from error


def _clip_tag(name: str) -> HubModel:
    import open_clip

    architecture, _, tag = name.partition("/")
    pretrained = pretrained_tag(architecture, tag)
    if pretrained is None:
        known = open_clip.list_pretrained_tags_by_model(architecture)
        tags = f"; its tags are {', '.join(known)}" if known else ""
        raise UsageError(
            f"{name}: unknown; give a preset, a SAM2 hub name, hf-hub:OWNER/NAME, or ARCHITECTURE/TAG of open_clip"
            f"{tags}"
        )
    folder, candidates = tag_files(pretrained)
    text = open_clip.get_model_config(architecture)["text_cfg"]
    if text.get("hf_tokenizer_name") or text.get("hf_model_name") or "siglip" in architecture.lower():
        raise UsageError(f"{name}: open_clip takes its tokenizer from the hub; fetch {HUB}{folder}, which holds it")
    repository = read_repository(folder)
    weights = _first(repository, candidates)
    return HubModel(name, "clip", weights, _files(repository, (weights, *_TERMS)))


def _first(repository: Repository, names: tuple[str, ...]) -> str:
    """The first of the names that the repository has."""
    for name in names:
        if name in repository.digests:
            return name
    raise MedFocusError(f"{repository.name}: holds no {' or '.join(names)}; choose another model")


def _files(repository: Repository, patterns: tuple[str, ...]) -> dict[str, HubFile]:
    """The files at the top of a repository that a pattern fits."""
    return {
        name: HubFile(repository, name)
        for name in repository.digests
        if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)
    }
