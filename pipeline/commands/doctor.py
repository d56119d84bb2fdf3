"""``medfocus doctor``: checks what is installed and reachable, and says how to mend what is not.

Libraries that may be broken are imported by their own check, so that one that fails does not hide the others.
"""

import os
import platform
import shutil
import sys
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medfocus.cluster.errors import ClusterError
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.causes import own_error, reason
from medfocus.pipeline.console.credentials import without_credentials
from medfocus.pipeline.console.logs import show
from medfocus.pipeline.data.storage import locate, s3_endpoint
from medfocus.pipeline.errors import MedFocusError

_LEAST_FREE_BYTES = 2 << 30


def run(config: Config, probe: str | None) -> dict[str, Any]:
    """Check everything a run needs and print a line for each; one failed check does not hide another.

    Args:
        config: the configuration; it names the cluster, the tracking store and the weights to check.
        probe: prefix below which a small file is written, read and deleted; None leaves object storage out.

    Returns:
        ``checks``: for each check what it found, as printed.

    Raises:
        MedFocusError: a check failed; the printed lines say why, and the mend.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("torch", _torch),
        ("torchvision", _torchvision),
        ("ray", lambda: _ray(config)),
        ("storage", lambda: _storage(config, probe)),
        ("mlflow", lambda: _mlflow(config)),
        ("sam2 weights", lambda: _sam2(config)),
        ("clip weights", lambda: _clip(config)),
        ("disk", lambda: _disk(config)),
    ]
    reports: dict[str, str] = {}
    failed: list[str] = []
    for name, check in checks:
        try:
            reports[name] = check()
            show(f"ok     {name}: {reports[name]}")
        except Exception as error:  # whatever fails, the other checks are still run
            failed.append(name)
            show(f"wrong  {name}: {_reason(error)}")
    if failed:
        raise MedFocusError(
            f"{len(failed)} of {len(checks)} checks failed ({', '.join(failed)}); the lines above say the mend"
        )
    return {"checks": reports}


def _reason(error: Exception) -> str:
    """What is wrong and the mend, in one line."""
    text = without_credentials(reason(error))
    if own_error(error):
        return text
    if isinstance(error, OSError):
        return f"{text}; check that it is there and may be used"
    return f"{text}; install MedFocus again with its constraints.txt (make demo does)"


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise MedFocusError(
            f"Python {platform.python_version()}, MedFocus needs 3.11 or 3.12; make the environment with it"
        )
    return f"{platform.python_version()} on {platform.machine()}"


def _torch() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"{torch.__version__}, no CUDA device, models run on {torch.get_num_threads()} CPU threads"
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{torch.__version__}, CUDA {torch.version.cuda}, {names}"


def _torchvision() -> str:
    from medfocus.stages import torchvision_ops

    # isort: split
    import torchvision

    own = "its own operators" if torchvision_ops.library is None else "stand-in schemas, as the wheel is built for CUDA"
    return f"{torchvision.__version__}, {own}"


def _ray(config: Config) -> str:
    from medfocus.cluster.connect import connected

    try:
        with connected(config.cluster.address, config.cluster.cpus) as resources:
            capacity = f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    except ClusterError as error:
        raise MedFocusError(str(error)) from error
    return f"{version('ray')}, {config.cluster.address or os.environ.get('RAY_ADDRESS') or 'started here'}: {capacity}"


def _storage(config: Config, probe: str | None) -> str:
    endpoint = without_credentials(s3_endpoint(config.storage) or "AWS")
    if probe is None:
        return f"not probed, S3 endpoint {endpoint}; --probe PREFIX writes, reads and deletes a small file"
    place = locate(probe, config.storage) / f".medfocus-doctor-{uuid.uuid4().hex}"
    content = uuid.uuid4().bytes
    place.write(content)
    try:
        if place.read() != content:
            raise MedFocusError(f"{probe}: what was written is not what is read; do not use this storage")
    finally:
        place.delete()
    return f"{probe}: wrote, read and deleted a file, S3 endpoint {endpoint}"


def _mlflow(config: Config) -> str:
    from medfocus.pipeline.tracking.store import connect, shown_uri

    connect(config)
    return f"{version('mlflow')}, {shown_uri(config)}"


def _sam2(config: Config) -> str:
    from medfocus.pipeline.models.whereabouts import locate_sam2

    return locate_sam2(config.segment, config.storage)


def _clip(config: Config) -> str:
    from medfocus.pipeline.models.whereabouts import locate_clip

    return locate_clip(config.clip, config.storage)


def _disk(config: Config) -> str:
    work = Path(config.work).absolute()
    existing = next(path for path in (work, *work.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < _LEAST_FREE_BYTES:
        raise MedFocusError(f"{free >> 20} MiB free at {existing}; free some, or set work to a folder on another disk")
    return f"{free >> 30} GiB free at {existing}"
