"""Finds or fetches the files of SAM2 and CLIP: a configured name becomes an architecture and a file on this node.

A node fetches a file once, however many workers need it. ``stages.weights`` loads the files. The command that starts a
run resolves the names and records the identity of each model. Every worker resolves the same names on its own node and
compares the identity, so that all workers of a run use the same models.

The cache of weights from object storage is our own. The file caches of fsspec write to the final path while they
download, without a lock: a process that is killed leaves a part of the file, which the next reader takes for the whole.
"""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download

from medfocus.pipeline.config import ClipSection, Config, SegmentSection, StorageSection
from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.data.storage import Location, locate, resolve_storage
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.models import mirror
from medfocus.pipeline.models.cache import cache_path
from medfocus.pipeline.models.hub_models import CLIP_WEIGHTS, HUB, TOKENIZER_FILES, pretrained_tag
from medfocus.stages.weights import (
    CLIP_CONFIG,
    WeightsError,
    check_sha256,
    file_sha256,
    sam2_hub_file,
    sam2_image_size,
)

STARTER = "starter"
# What is fetched of a CLIP repository on the hub.
_CLIP_HUB_FILES = (
    CLIP_CONFIG,
    *TOKENIZER_FILES,
    "open_clip*model.safetensors",
    "open_clip_pytorch_model.bin",
)

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model on this node.

    Args:
        model: the architecture: a name that the model's package knows, or a folder.
        checkpoint: the weights file.
        preprocess: ``mean`` and ``std`` that CLIP weights were trained with, where they are not the architecture's.
    """

    model: str | Path
    checkpoint: Path
    preprocess: dict[str, Any] | None = None

    def identity(self) -> str:
        """SHA-256 over the architecture, the content of the weights file and the preprocessing."""
        folder = Path(self.model)
        architecture = (
            [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))]
            if folder.is_dir()
            else [str(self.model)]
        )
        content = json.dumps([architecture, file_sha256(self.checkpoint), self.preprocess])
        return hashlib.sha256(content.encode()).hexdigest()


def resolve_paths(config: Config) -> Config:
    """The configuration with names that mean the same in every process and on every node.

    Folders and files of models and weights become absolute paths. The S3 endpoint and region that this process uses
    become part of the configuration, so that the environment of a worker cannot change them.
    """
    sections: dict[str, SegmentSection | ClipSection] = {"segment": config.segment, "clip": config.clip}
    resolved = {
        name: section.model_copy(update={"model": _absolute(section.model), "weights": _absolute(section.weights)})
        for name, section in sections.items()
    }
    weights = {"weights": _absolute(config.storage.weights)}
    return config.model_copy(update={**resolved, "storage": resolve_storage(config.storage).model_copy(update=weights)})


def _absolute(name: str | None) -> str | None:
    """The absolute path of a file or folder of this machine; any other name unchanged."""
    path = Path(name or "").expanduser()
    return str(path.absolute()) if name and name != STARTER and "://" not in name and path.exists() else name


def check_identity(model: ModelFiles, identity: str | None, section: str) -> None:
    """Check that this node has the model that the run was started with.

    Args:
        model: the model's files on this node.
        identity: the identity that the starting command recorded; None accepts every model.
        section: name of the configuration section, for the message.

    Raises:
        MedFocusError: this node has another file under the name, or another version of MedFocus.
    """
    if identity is not None and model.identity() != identity:
        raise MedFocusError(
            f"{section}.weights: {model.checkpoint.name} on node {platform.node()} is not what the run was started"
            " with; put the same files on every node, or name weights in object storage"
        )


def resolve_sam2(section: SegmentSection, storage: StorageSection) -> ModelFiles:
    """Find or fetch SAM2.

    Args:
        section: the model, its weights and their expected SHA-256.
        storage: endpoint and region of object storage, and the folder for fetched weights.

    Raises:
        UsageError: the weights do not exist, or their SHA-256 is not the configured one.
        StorageError: object storage cannot be read.
    """
    model: str | Path = _starter_folder("sam2") if section.model == STARTER else section.model
    if section.weights is not None:
        checkpoint: Path | None = _weights_file(section.weights, storage)
    elif (name := sam2_hub_file(section.model)) is not None:
        checkpoint = _hub_file(section.model, name, storage)
    else:
        checkpoint = _first_file(Path(model), ("model.safetensors",))
    return _model_files(model, checkpoint, section.sha256)


def image_size(section: SegmentSection, storage: StorageSection) -> int:
    """Side in pixels of the square images that SAM2 takes: the configured one, else the architecture's.

    Args:
        section: the model and, where it is configured, the side.
        storage: object storage, from which weights may have to be fetched.

    Raises:
        UsageError: the weights do not exist.
    """
    return section.image_size or sam2_image_size(resolve_sam2(section, storage).model)


def resolve_clip(section: ClipSection, storage: StorageSection) -> ModelFiles:
    """Find or fetch CLIP.

    Args:
        section: the model, its weights and their expected SHA-256.
        storage: endpoint and region of object storage, and the folder for fetched weights.

    Raises:
        UsageError: the weights do not exist, or their SHA-256 is not the configured one.
        StorageError: object storage cannot be read.
    """
    model: str | Path = section.model
    checkpoint: Path | None = None
    preprocess = None
    if section.model == STARTER:
        model = _starter_folder("clip")
    elif section.model.startswith(HUB):
        model = _hub_clip(section.model, storage)
    if section.weights is None:
        checkpoint = _first_file(Path(model), CLIP_WEIGHTS)
    elif (tag := pretrained_tag(section.model, section.weights)) is not None:
        checkpoint = _tag_file(section.model, section.weights, tag, storage)
        preprocess = {key: tag[key] for key in ("mean", "std") if tag.get(key)}
    else:
        checkpoint = _weights_file(section.weights, storage)
    return _model_files(model, checkpoint, section.sha256, preprocess)


def _model_files(
    model: str | Path, checkpoint: Path | None, sha256: str | None, preprocess: dict[str, Any] | None = None
) -> ModelFiles:
    """The files of a model, whose weights have to exist and to have the expected SHA-256."""
    if checkpoint is None:
        raise UsageError(f"{model}: no weights are configured; set weights to a path, an s3:// URI or a hub name")
    check_configured(checkpoint, sha256)
    return ModelFiles(model, checkpoint, preprocess)


def check_configured(checkpoint: Path, sha256: str | None) -> None:
    """Raise UsageError if a weights file has another SHA-256 than the configured one; None accepts every file."""
    if sha256 is None:
        return
    try:
        check_sha256(checkpoint, sha256)
    except WeightsError as error:
        raise UsageError(str(error)) from error


def _starter_folder(name: str) -> Path:
    return Path(str(files(f"medfocus.{STARTER}") / name))


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the names that is a file of the folder; None where none is."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _weights_file(uri: str, storage: StorageSection) -> Path:
    """A weights file on this node; one in object storage is fetched into the cache."""
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        if not path.is_file():
            raise UsageError(f"{uri}: no such weights file; correct the path")
        return path
    location, target = cached_file(uri, storage)
    if target.is_file():  # also in a cache that cannot be written
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(".lock")):  # the first worker of a node fetches, the others wait
        if not target.is_file():
            location.download(target)
    return target


def cached_file(uri: str, storage: StorageSection) -> tuple[Location, Path]:
    """A weights file in object storage, and where a node keeps it that has copied it.

    Raises:
        UsageError: there is no such file.
        StorageError: object storage cannot be read.
    """
    location = locate(uri, storage)
    stamp = location.stamp()
    if stamp is None:
        raise UsageError(f"{uri}: no such weights file; correct the URI")
    # A new content under the same URI is another file of the cache.
    key = hashlib.sha256(f"{uri} {stamp}".encode()).hexdigest()[:16]
    return location, cache_path(storage.cache, f"{key}/{Path(location.path).name}")


def _tag_file(model: str, tag: str, pretrained: dict[str, Any], storage: StorageSection) -> Path:
    """The weights file of a pretrained tag: of ``storage.weights``, else from where open_clip knows it."""
    if storage.weights is not None:
        return mirror.to_node(f"{model}/{tag}", storage)
    import open_clip

    return Path(_download(tag, lambda: open_clip.download_pretrained(pretrained)))


def _hub_file(repository: str, name: str, storage: StorageSection) -> Path:
    """A file of a repository of the hub: of ``storage.weights``, else from the hub."""
    if storage.weights is not None:
        return mirror.to_node(repository, storage)
    return Path(_download(repository, lambda: hf_hub_download(repo_id=repository, filename=name)))


def _hub_clip(name: str, storage: StorageSection) -> Path:
    """A folder with the files of a CLIP of the hub: of ``storage.weights``, else from the hub."""
    if storage.weights is not None:
        return mirror.to_node(name, storage).parent
    repository = name.removeprefix(HUB)
    return Path(_download(repository, lambda: snapshot_download(repository, allow_patterns=list(_CLIP_HUB_FILES))))


def _download(name: str, call: Callable[[], T]) -> T:
    """The result of a call to the hub's client; UsageError with the mend where it fails."""
    try:
        return call()
    except Exception as error:  # the client raises the errors of its transports
        raise UsageError(
            f"{name}: cannot be fetched ({reason(error)}); where there is no internet, set storage.weights to a folder"
            " that medfocus weights fetch made elsewhere"
        ) from error
