"""Checks that every node of a cluster sees the same files under a local path.

Each node resolves a local path on its own. If the nodes share no folder there, each actor writes to the disk of its own
node, and the driver sees only the files on its own disk.
"""

import hashlib
import platform
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medfocus.cluster.nodes import node_ids
from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import MedFocusError, UsageError

# Seconds within which every node must answer.
_TIMEOUT = 120


def check_shared(storage: StorageSection, *, read: Sequence[Location], written: Sequence[Location]) -> None:
    """Check that every node of the cluster sees the same local files. Object storage needs no check.

    Each node reads the files of ``read`` and writes a file below each prefix of ``written``. The driver looks for that
    file and removes it.

    Args:
        storage: storage section of the configuration; ``shared`` says that every node mounts the local paths.
        read: files that the run reads.
        written: prefixes that the run writes to.

    Raises:
        UsageError: there are several nodes, and ``shared`` is not set, or a node sees other files.
        MedFocusError: a node does not answer.
    """
    read, written = [[place for place in places if place.is_local] for places in (read, written)]
    nodes = node_ids()
    if len(nodes) < 2 or not (read or written):
        return
    example = (written or read)[0]
    if not storage.shared:
        raise UsageError(
            f"{example.uri}: a local path, and the cluster has {len(nodes)} nodes with disks of their own; give an s3://"
            " URI, or set storage.shared=true if every node mounts this folder"
        )
    _probe(nodes, read, written)


def check_visible(file: Location) -> None:
    """Raise MedFocusError if this node does not see a local file that the driver has written."""
    if file.is_local and not file.exists():
        raise MedFocusError(
            f"{file.uri}: written by the command and not seen on node {platform.node()}; give an s3:// URI, or mount"
            " the folder on every node"
        )


def _probe(nodes: Sequence[str], read: Sequence[Location], written: Sequence[Location]) -> None:
    """Compare what the nodes and the driver read and write.

    Raises:
        UsageError: a node sees other files than the driver.
        MedFocusError: a node does not answer.
    """
    digests = [_digest(place) for place in read]
    probes = [place / f".medfocus-probe-{uuid.uuid4().hex}" for place in written]
    try:
        for probe in probes:
            probe.write(b"written by the driver")
        answers = [_remote_check(node).remote(node, read, digests, probes) for node in nodes]
        for node, (host, missing) in zip(nodes, ray.get(answers, timeout=_TIMEOUT), strict=True):
            missing = missing or next((probe.uri for probe in probes if not _node_probe(probe, node).exists()), "")
            if missing:
                raise UsageError(
                    f"{missing}: not the same file on node {host} and here, though storage.shared=true; mount the"
                    " folder on every node, or give an s3:// URI"
                )
    except GetTimeoutError as error:
        raise MedFocusError(f"a node did not answer within {_TIMEOUT} s; see ray status, and start again") from error
    finally:
        for probe in probes:
            for place in (probe, *(_node_probe(probe, node) for node in nodes)):
                place.delete()


def _remote_check(node: str) -> Any:
    """``_check_here`` as a task on a node."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_check_here).options(num_cpus=0, scheduling_strategy=strategy)


def _check_here(
    node: str, read: Sequence[Location], digests: Sequence[str], probes: Sequence[Location]
) -> tuple[str, str]:
    """Run on a node: its host name, and the first file that differs from the driver's; empty if there is none."""
    for place, digest in zip(read, digests, strict=True):
        if not place.exists() or _digest(place) != digest:
            return platform.node(), place.uri
    for probe in probes:
        if not probe.exists():
            return platform.node(), probe.uri
        _node_probe(probe, node).write(b"written by a node")
    return platform.node(), ""


def _node_probe(probe: Location, node: str) -> Location:
    """The file that a node writes beside a probe of the driver."""
    return replace(probe, path=f"{probe.path}-{node}", uri=f"{probe.uri}-{node}")


def _digest(place: Location) -> str:
    return hashlib.sha256(place.read()).hexdigest()
