"""Where model weights come from: a configured name becomes an architecture and a file on this node.

Loading is ``stages.weights``; here files are only found or fetched, once a node. The command that starts a run resolves
the names and knows the identity of what it found; every worker finds the files on its own node and checks that they are
the same.
"""

import hashlib
import json
import platform
import shutil
import uuid
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download

from medfocus.cluster.account import is_writable, own_folder
from medfocus.pipeline.config import ClipSection, Config, SegmentSection, StorageSection
from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data.storage import Location, locate, resolve_storage
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.stages.weights import WeightsError, check_sha256, file_sha256, sam2_hub_file, sam2_image_size

STARTER = "starter"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model comes from.

    Args:
        model: architecture, a name of its package or a folder.
        checkpoint: weights file.
        preprocess: ``mean`` and ``std`` that CLIP weights were trained with, where they are not the architecture's.
    """

    model: str | Path
    checkpoint: Path
    preprocess: dict[str, Any] | None = None

    def identity(self) -> str:
        """What tells this model from any other: its architecture and the SHA-256 of its weights."""
        folder = Path(self.model)
        described = (
            [path.read_text() for path in sorted(folder.glob("*.json"))] if folder.is_dir() else [str(self.model)]
        )
        return hashlib.sha256(
            json.dumps([described, file_sha256(self.checkpoint), self.preprocess]).encode()
        ).hexdigest()


def resolve_paths(config: Config) -> Config:
    """The configuration with names that mean the same in every process and on every node.

    Folders and files of models become absolute paths; the endpoint and the region in force here become those of the
    configuration, whatever the environment of a worker says.
    """
    sections: dict[str, SegmentSection | ClipSection] = {"segment": config.segment, "clip": config.clip}
    settled = {
        name: section.model_copy(update={"model": _absolute(section.model), "weights": _absolute(section.weights)})
        for name, section in sections.items()
    }
    return config.model_copy(update={**settled, "storage": resolve_storage(config.storage)})


def _absolute(name: str | None) -> str | None:
    """The absolute path of what is a file or a folder here; any other name as it is."""
    path = Path(name or "").expanduser()
    return str(path.absolute()) if name and name != STARTER and "://" not in name and path.exists() else name


def check_identity(source: ModelFiles, identity: str | None, section: str) -> ModelFiles:
    """The source, if it is the model that the run was started with; ``None`` takes any.

    Raises:
        MedFocusError: this node has another file under the name, or another version of MedFocus.
    """
    if identity is not None and source.identity() != identity:
        raise MedFocusError(
            f"{section}.weights: {source.checkpoint.name} on node {platform.node()} is not what the run was started"
            " with; put the same files on every node, or name weights in object storage"
        )
    return source


def resolve_sam2(section: SegmentSection, storage: StorageSection) -> ModelFiles:
    """Find or fetch SAM2.

    Raises:
        UsageError: there are no such weights, or their SHA-256 is not the configured one.
    """
    model: str | Path = _starter_folder("sam2") if section.model == STARTER else section.model
    if section.weights is not None:
        checkpoint: Path | None = _fetch(section.weights, storage)
    elif (name := sam2_hub_file(section.model)) is not None:
        checkpoint = _from_hub(section.model, name)
    else:
        checkpoint = _existing(Path(model) / "model.safetensors")
    return _checked(model, checkpoint, section.sha256)


def image_size(section: SegmentSection, storage: StorageSection) -> int:
    """Side in pixels of the square images that SAM2 is given: the configured one, else its own."""
    return section.image_size or sam2_image_size(resolve_sam2(section, storage).model)


def resolve_clip(section: ClipSection, storage: StorageSection) -> ModelFiles:
    """Find or fetch CLIP.

    Raises:
        UsageError: there are no such weights, or their SHA-256 is not the configured one.
    """
    model: str | Path = section.model
    if section.model == STARTER:
        model = _starter_folder("clip")
    elif section.model.startswith("hf-hub:"):
        model = _clip_from_hub(section.model.removeprefix("hf-hub:"))
    if section.weights is not None and (tagged := _from_tag(section.model, section.weights)) is not None:
        return _checked(tagged.model, tagged.checkpoint, section.sha256, tagged.preprocess)
    if section.weights is None:
        names = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
        found = [path for name in names if (path := _existing(Path(model) / name))]
        checkpoint = found[0] if found else None
    else:
        checkpoint = _fetch(section.weights, storage)
    return _checked(model, checkpoint, section.sha256)


def _checked(
    model: str | Path, checkpoint: Path | None, sha256: str | None, preprocess: dict[str, Any] | None = None
) -> ModelFiles:
    if checkpoint is None:
        raise UsageError(f"{model}: no weights are configured; set weights to a path, an s3:// URI or a hub name")
    if sha256 is not None:
        try:
            check_sha256(checkpoint, sha256)
        except WeightsError as error:
            raise UsageError(str(error)) from error
    return ModelFiles(model, checkpoint, preprocess)


def _starter_folder(name: str) -> Path:
    return Path(str(files(f"medfocus.{STARTER}") / name))


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _fetch(uri: str, storage: StorageSection) -> Path:
    """A weights file on this node, fetched into the cache if it is in object storage."""
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        if not path.is_file():
            raise UsageError(f"{uri}: no such weights file; correct the path")
        return path
    source = locate(uri, storage)
    info = source.filesystem.get_file_info(source.path)
    if not source.exists():
        raise UsageError(f"{uri}: no such weights file; correct the URI")
    # Content that changes under the same URI is another file.
    key = hashlib.sha256(f"{uri} {info.size} {info.mtime_ns}".encode()).hexdigest()[:16]
    target = _cache_place(storage.cache, f"{key}/{Path(source.path).name}")
    if target.is_file():  # also in a cache that may only be read
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(".lock")):  # of all workers of a node the first one fetches
        if not target.is_file():
            source.attempt(lambda: _download(source, target))
    return target


def _download(source: Location, target: Path) -> None:
    """A reader of the target sees the whole file or none."""
    draft = target.with_name(f".{uuid.uuid4().hex}")
    try:
        with source.filesystem.open_input_stream(source.path) as stream, draft.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 22)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _cache_place(cache: str, name: str) -> Path:
    """Where a fetched file is, or goes: below the cache, or in the temporary folder where that cannot be written."""
    place = Path(cache).expanduser() / name
    if place.is_file() or is_writable(place.parent):
        return place
    instead = own_folder() / "cache"
    log.warning("storage.cache: %s cannot be written, fetched weights are kept in %s", cache, instead)
    return instead / name


def _from_hub(repository: str, name: str) -> Path:
    return Path(_downloaded(repository, lambda: hf_hub_download(repo_id=repository, filename=name)))


def _from_tag(model: str, tag: str) -> ModelFiles | None:
    """The weights of a pretrained tag as open_clip names them; None where it knows no such tag of the model.

    Raises:
        UsageError: the weights were trained with another activation than the architecture has.
    """
    if "/" in tag or "." in tag:  # a path or a URI; open_clip takes seconds to import
        return None
    import open_clip

    configuration = open_clip.get_pretrained_cfg(model, tag)
    if not configuration:
        return None
    # open_clip only warns of it, and the model would answer, wrongly.
    wanted = configuration.get("quick_gelu", False)
    if wanted != open_clip.get_model_config(model).get("quick_gelu", False):
        name = f"{model}-quickgelu" if wanted else model.removesuffix("-quickgelu")
        raise UsageError(f"{tag}: these weights are not of {model} but of {name}; set clip.model={name}")
    checkpoint = Path(_downloaded(tag, lambda: open_clip.download_pretrained(configuration)))
    return ModelFiles(model, checkpoint, {key: configuration[key] for key in ("mean", "std") if configuration.get(key)})


def _clip_from_hub(repository: str) -> Path:
    weights = ["open_clip*model.safetensors", "open_clip_pytorch_model.bin"]
    patterns = ["open_clip_config.json", "tokenizer*", "special_tokens_map.json", "vocab.txt", *weights]
    return Path(_downloaded(repository, lambda: snapshot_download(repository, allow_patterns=patterns)))


def _downloaded(name: str, download):  # type: ignore[no-untyped-def]
    try:
        return download()
    except Exception as error:  # the hub's client raises its transports' errors
        reason = str(error).strip().splitlines()[0][:160]
        raise UsageError(
            f"{name}: cannot be fetched ({reason}); put the file within reach and set weights to its path"
        ) from error
