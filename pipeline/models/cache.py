"""The folder of a node where fetched weights are kept."""

from pathlib import Path

from medfocus.cluster.account import is_writable, own_folder
from medfocus.pipeline.console.logs import log


def cache_path(cache: str, name: str) -> Path:
    """The path of a fetched file: below the cache, or in the temporary folder where the cache cannot be written.

    Args:
        cache: the folder, as ``storage.cache`` names it.
        name: path of the file below it.
    """
    path = Path(cache).expanduser() / name
    if path.is_file() or is_writable(path.parent):
        return path
    fallback = own_folder() / "cache"
    log.warning("storage.cache: %s cannot be written, fetched weights are kept in %s", cache, fallback)
    return fallback / name
