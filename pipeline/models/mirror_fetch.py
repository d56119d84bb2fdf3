"""Copies models from the hub into a folder of weights (``models.mirror``)."""

from dataclasses import dataclass

from medfocus.pipeline.console.logs import event
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.models.hub_models import HubFile, HubModel
from medfocus.pipeline.models.mirror import (
    MirrorFile,
    MirrorModel,
    check_name,
    digest,
    place_of,
)
from medfocus.stages.weights import file_sha256


@dataclass
class Count:
    """What a fetch has done so far: files and bytes that were copied, and files that the folder already had."""

    copied: int = 0
    bytes: int = 0
    kept: int = 0


def mirror_model(model: HubModel, root: Location, count: Count) -> MirrorModel:
    """Copy the files of a model into the folder; files that are there with the right content stay.

    Args:
        model: the model on the hub.
        root: the folder of weights.
        count: is added to.

    Returns:
        The entry of the model for ``weights.json``.

    Raises:
        MedFocusError: the hub does not give a file, or the folder cannot be written.
    """
    folder, files = place_of(root, _checked(model, model.name)), {}
    for name, source in sorted(model.files.items()):
        files[name] = _mirror_file(source, folder / _checked(model, name), count)
    return MirrorModel(kind=model.kind, weights=model.weights, files=files)


def _checked(model: HubModel, name: str) -> str:
    """A name that the hub gave; MedFocusError where it would lead out of the folder."""
    try:
        return check_name(name)
    except ValueError as error:
        raise MedFocusError(f"{model.name}: {error}; do not use this repository") from error


def _mirror_file(source: HubFile, place: Location, count: Count) -> MirrorFile:
    """Bring a file of the hub to its place; returns its entry for ``weights.json``."""
    repository, stated = source.repository, source.repository.digests[source.name]
    here = digest(place)
    if stated is None or here != stated:
        path = repository.fetch(source.name)
        stated = file_sha256(path)
    if here == stated:
        count.kept += 1
    else:
        place.upload(path)
        count.copied, count.bytes = count.copied + 1, count.bytes + path.stat().st_size
        event("copied", file=place.uri, bytes=path.stat().st_size)
    return MirrorFile(sha256=stated, source=repository.source, revision=repository.revision, licence=repository.licence)
