"""Local paths on a cluster: whether every node sees the same files under them.

A local path means the disk of the node that uses it. On several nodes each actor would write to its own disk, and the
driver would count what is on its own.
"""

import hashlib
import platform
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medfocus.cluster.connect import alive_nodes
from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.errors import MedFocusError, UsageError

# Seconds within which every node has to answer.
_PATIENCE = 120


def check_shared(storage: StorageSection, *, read: Sequence[Location], written: Sequence[Location]) -> None:
    """Raise UsageError unless every node of the cluster sees the same local files. Locations of other kinds pass.

    Each node reads the files of ``read`` and writes a file of its own below each prefix of ``written``, which is read
    here and removed again.

    Args:
        storage: ``shared`` says that local paths are folders that every node mounts.
        read: files that a run reads.
        written: prefixes that a run writes to.
    """
    read, written = [[place for place in places if place.is_local] for places in (read, written)]
    nodes = alive_nodes()
    if len(nodes) < 2 or not (read or written):
        return
    example = (written or read)[0]
    if not storage.shared:
        raise UsageError(
            f"{example.uri}: a local path, and the cluster has {len(nodes)} nodes with disks of their own; give an s3://"
            " URI, or set storage.shared=true if every node mounts this folder"
        )
    _probe(nodes, read, written)


def check_seen(file: Location) -> None:
    """Raise MedFocusError if a local file that the driver wrote is not seen on this node."""
    if file.is_local and not file.exists():
        raise MedFocusError(
            f"{file.uri}: written by the command and not seen on node {platform.node()}; give an s3:// URI, or mount"
            " the folder on every node"
        )


def _probe(nodes: Sequence[str], read: Sequence[Location], written: Sequence[Location]) -> None:
    digests = [_digest(place) for place in read]
    probes = [place / f".medfocus-probe-{uuid.uuid4().hex}" for place in written]
    try:
        for probe in probes:
            probe.write(b"written by the driver")
        answers = {node: _on_node(node).remote(node, read, digests, probes) for node in nodes}
        for node, (name, unseen) in zip(answers, ray.get(list(answers.values()), timeout=_PATIENCE), strict=True):
            unseen = unseen or next((probe.uri for probe in probes if not _of_node(probe, node).exists()), "")
            if unseen:
                raise UsageError(
                    f"{unseen}: not the same file on node {name} and here, though storage.shared=true; mount the folder"
                    " on every node, or give an s3:// URI"
                )
    except GetTimeoutError as error:
        raise MedFocusError(f"a node did not answer within {_PATIENCE} s; see ray status, and start again") from error
    finally:
        for probe in probes:
            for place in (probe, *(_of_node(probe, node) for node in nodes)):
                place.delete()


def _on_node(node: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(_look).options(num_cpus=0, scheduling_strategy=strategy)


def _look(node: str, read: Sequence[Location], digests: Sequence[str], probes: Sequence[Location]) -> tuple[str, str]:
    """On a node: its host name, and the first file that is not what the driver sees; empty where all are."""
    for place, digest in zip(read, digests, strict=True):
        if not place.exists() or _digest(place) != digest:
            return platform.node(), place.uri
    for probe in probes:
        if not probe.exists():
            return platform.node(), probe.uri
        _of_node(probe, node).write(b"written by a node")
    return platform.node(), ""


def _of_node(probe: Location, node: str) -> Location:
    return Location(probe.filesystem, f"{probe.path}-{node}", f"{probe.uri}-{node}")


def _digest(place: Location) -> str:
    return hashlib.sha256(place.read()).hexdigest()
