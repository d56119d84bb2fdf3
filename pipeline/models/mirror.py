"""A folder of weights that stands for the hub where there is no internet: ``storage.weights``.

The folder holds a folder for each model and ``weights.json``, which is written last. It names the files of each model
with their SHA-256, source, revision and licence. ``medfocus weights fetch`` makes it (``models.mirror_fetch``).
A folder in object storage is copied to a node's cache, one model at a time, when a model is first used there.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.console.logs import log, one_line
from medfocus.pipeline.data.storage import ConditionError, Location, locate
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models.cache import cache_path
from medfocus.pipeline.models.hub_models import HUB
from medfocus.stages.weights import file_sha256

MANIFEST = "weights.json"
_NAME = re.compile(r"[\w.+@-]+(/[\w.+@-]+)*", re.ASCII)


def check_name(name: str) -> str:
    """A name of a model or of a file that stays below the folder it is put in.

    Raises:
        ValueError: it is absolute, has an empty part, ``.`` or ``..``, or unusual characters.
    """
    parts = name.removeprefix(HUB)
    if not _NAME.fullmatch(parts) or any(part.strip(".") == "" for part in parts.split("/")):
        raise ValueError(f"{name!r} is no name of a file below the folder")
    return name


Name = Annotated[str, AfterValidator(check_name)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MirrorFile(_Entry):
    """A file of a model: its SHA-256, and the repository, commit and licence it comes from."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    source: str
    revision: str
    licence: str


class MirrorModel(_Entry):
    """A model: SAM2 or CLIP, the name of its weights file, and its files by their names in its folder."""

    kind: Literal["sam2", "clip"]
    weights: Name
    files: dict[Name, MirrorFile]

    @property
    def key(self) -> str:
        """SHA-256 that stands for the content of all files."""
        content = json.dumps({name: file.sha256 for name, file in sorted(self.files.items())})
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def licence(self) -> str:
        """The licence of the weights."""
        return self.files[self.weights].licence


class Manifest(_Entry):
    """The content of ``weights.json``: models by the name that the configuration has for them."""

    format: Literal[1] = 1
    models: dict[Name, MirrorModel] = {}


def read_manifest(root: Location) -> Manifest:
    """The content of the folder's ``weights.json``.

    Raises:
        UsageError: there is none, or it is damaged.
        StorageError: the folder cannot be read.
    """
    if not (root / MANIFEST).exists():
        raise UsageError(
            f"{root.uri}: no {MANIFEST} there; correct the folder, or fill it with medfocus weights fetch NAME --to"
            f" {root.uri}"
        )
    return _parse((root / MANIFEST).read(), root)


def add_to_manifest(root: Location, models: Mapping[str, MirrorModel]) -> None:
    """Put models into ``weights.json`` beside those that it has, also where several processes do so at once.

    Raises:
        UsageError: ``weights.json`` is damaged.
        StorageError: the folder cannot be written.
    """
    place = root / MANIFEST
    try:
        while not _merge(place, root, models):  # another process was faster
            pass
    except ConditionError:
        log.warning("%s: without conditional writes, two fetches at once may lose a model", root.uri)
        known = read_manifest(root).models if place.exists() else {}
        place.write(_content({**known, **models}))


def _merge(place: Location, root: Location, models: Mapping[str, MirrorModel]) -> bool:
    """Try to put models into ``weights.json``; returns whether it could be written."""
    if not place.exists():
        return place.create(_content(models))
    content, version = place.read_version()
    return place.replace(_content({**_parse(content, root).models, **models}), version)


def _content(models: Mapping[str, MirrorModel]) -> bytes:
    manifest = Manifest(models=dict(models)).model_dump()
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


def _parse(content: bytes, root: Location) -> Manifest:
    try:
        manifest = Manifest.model_validate(json.loads(content))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        message = one_line(f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
        raise UsageError(f"{root.uri}/{MANIFEST}: {message}; fetch the weights to another folder") from error
    except ValueError as error:
        raise UsageError(f"{root.uri}/{MANIFEST}: not JSON; fetch the weights to another folder") from error
    for name, model in manifest.models.items():
        if model.weights not in model.files or "/" in model.weights:
            raise UsageError(f"{root.uri}/{MANIFEST}: {name} has no weights file; fetch the weights to another folder")
    return manifest


def place_of(root: Location, name: str) -> Location:
    """The folder of a model below the folder of weights."""
    return root / name.replace(HUB, "hf-hub/")


def find_model(name: str, storage: StorageSection) -> tuple[Location, MirrorModel]:
    """The folder that ``storage.weights`` names, and the entry of a model there.

    Raises:
        UsageError: the folder does not have the model.
    """
    root = locate(storage.weights or "", storage)
    model = read_manifest(root).models.get(name)
    if model is None:
        raise UsageError(
            f"{name}: not in storage.weights, {root.uri}; add it on a machine with internet: medfocus weights fetch"
            f" {name} --to {root.uri}"
        )
    return root, model


def to_node(name: str, storage: StorageSection) -> Path:
    """A model of ``storage.weights`` on this node: in place where the folder is local, else copied into the cache.

    Args:
        name: name of the model in ``weights.json``.
        storage: the folder of weights, and the cache.

    Returns:
        The weights file; its folder holds the other files of the model.

    Raises:
        UsageError: the folder does not have the model, or a file is not what ``weights.json`` says.
        StorageError: the folder cannot be read.
    """
    root, model = find_model(name, storage)
    if root.is_local:
        for line in wrong_files(root, name, model):
            raise UsageError(line)
        return Path(place_of(root, name).path) / model.weights
    checkpoint = cached_checkpoint(model, storage)
    if not checkpoint.is_file():  # it is copied last
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(checkpoint.with_name(".lock")):  # the first worker of a node copies, the others wait
            copy_settings(root, name, model, checkpoint.parent)
            _copy(place_of(root, name) / model.weights, checkpoint, model.files[model.weights])
    return checkpoint


def cached_checkpoint(model: MirrorModel, storage: StorageSection) -> Path:
    """Where a node keeps the weights file of a model that it has copied; it is there when all files are."""
    return cache_path(storage.cache, f"{model.key[:16]}/{model.weights}")


def copy_settings(root: Location, name: str, model: MirrorModel, folder: Path) -> None:
    """Copy the files of a model but its weights into a folder; those that are there stay.

    Raises:
        UsageError: a file is not what ``weights.json`` says.
        StorageError: a file cannot be read.
    """
    for file in model.files.keys() - {model.weights}:
        _copy(place_of(root, name) / file, folder / file, model.files[file])


def wrong_files(root: Location, name: str, model: MirrorModel) -> Iterator[str]:
    """Compare every file of a model with ``weights.json``; yields a line for each that is wrong.

    Raises:
        StorageError: a file cannot be read.
    """
    for file, entry in model.files.items():
        place = place_of(root, name) / file
        found = digest(place)
        if found is None:
            yield f"{place.uri}: no such file; fetch {name} again, which adds it"
        elif found != entry.sha256:
            yield _difference(place, found, entry)


def digest(place: Location) -> str | None:
    """Hexadecimal SHA-256 of a file in storage; None where there is none."""
    if not place.exists():
        return None
    with place.open() as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto


def _difference(place: Location, found: str, file: MirrorFile) -> str:
    return f"{place.uri}: sha256 is {found}, {MANIFEST} has {file.sha256}; fetch the model again, which replaces it"


def _copy(place: Location, target: Path, file: MirrorFile) -> None:
    """Copy a file to this node unless it is there; a reader of the target sees the whole file or none."""
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{uuid.uuid4().hex}")
    try:
        place.download(draft)
        if (found := file_sha256(draft)) != file.sha256:
            raise UsageError(_difference(place, found, file))
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
