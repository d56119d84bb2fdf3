"""Archives for tests, made by zipfile, tarfile and by hand."""

import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable

from medfocus.pipeline.ingest.containers import Limits, RefusedMember, members, open_members

Files = Iterable[tuple[str, bytes]]
NOISE = bytes(range(256)) * 20


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that is there twice
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def streamed_zip(files: Files) -> bytes:
    """A zip whose sizes follow the data, as programs write that cannot go back."""

    class Pipe(io.BytesIO):
        def tell(self) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return pipe.getvalue()


def tarred(files: Files, mode: str = "w:", form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_gz(files: Files) -> bytes:
    return tarred(files, "w:gz")


PACKERS: dict[str, Callable[[Files], bytes]] = {
    "zip": zipped,
    "streamed zip": streamed_zip,
    "tar": tarred,
    "tar.gz": tar_gz,
}


def read(content: bytes, limits: Limits | None = None) -> list[tuple[str, bytes | str]]:
    """Names with contents, or with the class of the error."""
    found = open_members(io.BytesIO(content), limits=limits or Limits())
    return [(name, part.error if isinstance(part, RefusedMember) else part) for name, part in found]


def errors(content: bytes) -> dict[str, str]:
    """The errors of listing an archive, by name."""
    return {part.name: part.error for part in members(io.BytesIO(content)) if isinstance(part, RefusedMember)}
