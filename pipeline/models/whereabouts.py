"""Where the weights of a configuration are, in words; nothing is fetched, and the hub is not asked."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from medfocus.pipeline.config import ClipSection, SegmentSection, StorageSection
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.models import mirror, model_files
from medfocus.pipeline.models.hub_models import CLIP_WEIGHTS, HUB, pretrained_tag, tag_files
from medfocus.stages.weights import CLIP_CONFIG, file_sha256, sam2_hub_file


def locate_sam2(section: SegmentSection, storage: StorageSection) -> str:
    """Where SAM2 is, as one line.

    Raises:
        UsageError: it cannot be had, or is not what is configured.
    """
    if section.weights is None and (file := sam2_hub_file(section.model)) is not None:
        return _of_hub(section.model, section.model, (file,), section.sha256, storage)
    return _of_file(section, storage) or _local(model_files.resolve_sam2(section, storage).checkpoint, None)


def locate_clip(section: ClipSection, storage: StorageSection) -> str:
    """Where CLIP is, as one line.

    Raises:
        UsageError: it cannot be had, or is not what is configured.
    """
    if section.weights is not None and (tag := pretrained_tag(section.model, section.weights)) is not None:
        return _of_hub(f"{section.model}/{section.weights}", *tag_files(tag), section.sha256, storage)
    if section.model.startswith(HUB):
        repository, own = section.model.removeprefix(HUB), section.weights
        if own is None:
            return _of_hub(section.model, repository, CLIP_WEIGHTS, section.sha256, storage)
        return f"{_of_hub(section.model, repository, (CLIP_CONFIG,), None, storage)}; weights {own}"
    return _of_file(section, storage) or _local(model_files.resolve_clip(section, storage).checkpoint, None)


def _of_file(section: SegmentSection | ClipSection, storage: StorageSection) -> str | None:
    """A configured file in object storage; None for one of this machine."""
    if section.weights is None or "://" not in section.weights:
        return None
    _, file = model_files.cached_file(section.weights, storage)
    if file.is_file():
        return f"{section.weights}: {_local(file, section.sha256)}"
    return f"{section.weights}, copied to each node at first use"


def _of_hub(name: str, repository: str, files: Sequence[str], sha256: str | None, storage: StorageSection) -> str:
    """A model of the hub: in ``storage.weights``, else in the hub's cache, else not here yet."""
    if storage.weights is not None:
        return _of_mirror(name, sha256, storage)
    for file in files:
        if isinstance(path := try_to_load_from_cache(repository, file), str):
            return f"{_local(Path(path), sha256)}, in the cache of the hub"
    mend = f"medfocus weights fetch {name} --to FOLDER where there is internet, and set storage.weights"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"{name}: not here, and HF_HUB_OFFLINE forbids to fetch it; {mend}")
    return f"{name}: not here yet, fetched from the hub at first use; or {mend}"


def _of_mirror(name: str, sha256: str | None, storage: StorageSection) -> str:
    root, model = mirror.find_model(name, storage)
    entry = model.files[model.weights]
    if sha256 is not None and sha256.lower() != entry.sha256:
        raise UsageError(f"{name}: sha256 is {entry.sha256} in {root.uri}, not the configured {sha256}; correct one")
    if root.is_local or mirror.cached_checkpoint(model, storage).is_file():
        place = str(mirror.to_node(name, storage))
    else:
        missing = [file for file in model.files if not (mirror.place_of(root, name) / file).exists()]
        if missing:
            raise UsageError(f"{name}: {root.uri} lacks its {missing[0]}; fetch it again, which adds what is missing")
        place = f"{model.weights} in {root.uri}, copied to each node at first use"
    return f"{place}, sha256 {entry.sha256}, licence {entry.licence}"


def _local(file: Path, sha256: str | None) -> str:
    model_files.check_configured(file, sha256)
    return f"{file.name}, sha256 {file_sha256(file)}"
