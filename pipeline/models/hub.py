"""The Hugging Face hub: what a repository holds, and its files on this machine.

Files are kept in the hub's own cache (``HF_HOME``), where its client continues a download that was stopped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from medfocus.pipeline.console.causes import reason
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.errors import MedFocusError
from medfocus.stages.weights import file_sha256

NOT_STATED = "not stated"

T = TypeVar("T")


@dataclass(frozen=True)
class Repository:
    """A repository of a model at one commit.

    Args:
        name: owner and name.
        revision: the commit.
        licence: the licence that its model card states, or ``NOT_STATED``.
        digests: SHA-256 by name of file; None where the hub does not state it, as for small files.
    """

    name: str
    revision: str
    licence: str
    digests: Mapping[str, str | None]

    @property
    def source(self) -> str:
        """The address of the repository."""
        return without_credentials(f"{constants.ENDPOINT}/{self.name}")

    def fetch(self, file: str) -> Path:
        """Fetch a file into the hub's cache; one that is there is not fetched again.

        Args:
            file: its name in the repository.

        Returns:
            The path of the file.

        Raises:
            MedFocusError: the hub does not give the file, or its content is not what the hub states.
        """
        expected = self.digests[file]
        path = self._download(file)
        if expected is not None and file_sha256(path) != expected:  # the cache may hold a damaged file
            path = self._download(file, force_download=True)
            if (found := file_sha256(path)) != expected:
                raise MedFocusError(
                    f"{self.name}: {file} has sha256 {found}, the hub states {expected}; do not use it, and see whether"
                    " a proxy changes what is fetched"
                )
        return path

    def _download(self, file: str, *, force_download: bool = False) -> Path:
        options = {"revision": self.revision, "force_download": force_download}
        path: str = attempt(self.name, lambda: hf_hub_download(self.name, file, **options))  # type: ignore[call-overload]
        return Path(path)


def read_repository(name: str) -> Repository:
    """What a repository holds now.

    Args:
        name: owner and name.

    Raises:
        MedFocusError: the repository does not exist or may not be read, or the hub does not answer.
    """
    info = attempt(name, lambda: HfApi().model_info(name, files_metadata=True))
    card = info.card_data
    licence = (card.get("license_name") or card.get("license")) if card else None
    siblings = info.siblings or []
    return Repository(
        name=name,
        revision=str(info.sha),
        licence=str(licence or NOT_STATED),
        digests={file.rfilename: file.lfs.sha256 if file.lfs else None for file in siblings},
    )


def attempt(name: str, call: Callable[[], T]) -> T:
    """The result of a call to the hub's client.

    Args:
        name: the repository, for the message.
        call: the call.

    Raises:
        MedFocusError: the call failed; the message names the cause and the mend.
    """
    try:
        return call()
    except Exception as error:  # the client raises the errors of its transports
        raise MedFocusError(f"{name}: {_cause(name, error)}") from error


def _cause(name: str, error: Exception) -> str:
    """Why a repository cannot be fetched, and the mend."""
    hub = without_credentials(constants.ENDPOINT)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it on a machine with internet"
    if isinstance(error, GatedRepoError):
        return f"its owner gives access on request; ask for it at {hub}/{name}, then set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such repository at {hub}, or a private one; correct the name, or set HF_TOKEN"
    return (
        f"cannot be fetched from {hub} ({without_credentials(reason(error))}); check the network, HTTPS_PROXY and the"
        " space in HF_HOME, and repeat the call, which goes on from here"
    )
