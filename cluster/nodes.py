"""The nodes of the cluster that this process is connected to: which are there, which may come, which leave."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util import placement_group, remove_placement_group

from medfocus.cluster.errors import ClusterError
from medfocus.cluster.resources import Share, describe

log = logging.getLogger("medfocus")
# Where Ray's cluster launcher keeps the configuration of the cluster on its head node, with the resources of each type.
LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml")
_HEAD = "node:__internal_head__"
_SECONDS_BETWEEN_LOOKS = 5.0


def node_ids() -> list[str]:
    """Ids of the nodes that are alive."""
    return sorted(node["NodeID"] for node in _alive_nodes())


def node_resources() -> list[Mapping[str, float]]:
    """Resources of each node that is alive, by Ray's names."""
    return [node["Resources"] for node in _alive_nodes()]


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def autoscaler_reach(file: Path = LAUNCHER_FILE) -> list[Mapping[str, float]]:
    """Resources of the nodes that the autoscaler can start at most, by Ray's names.

    Ray has no public call for this. Its cluster launcher leaves the configuration of the cluster on the head node,
    where a submitted command runs. Types with GPUs are counted first. Elsewhere the list is empty, and the number of
    GPUs or workers has to be configured.

    Args:
        file: the configuration that the launcher leaves.

    Raises:
        ClusterError: the file is not a configuration of the launcher.
    """
    file = file.expanduser()
    if not file.is_file() or not _is_head():
        return []
    try:
        return _reach(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ClusterError(
            f"{file}: not a configuration of Ray's cluster launcher; set cluster.gpus or cluster.workers, or correct it"
        ) from error


def _is_head() -> bool:
    """Whether this machine is the head node of the cluster."""
    address = ray.util.get_node_ip_address()
    return any(_HEAD in node["Resources"] and node["NodeManagerAddress"] == address for node in _alive_nodes())


def _reach(content: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """Resources of the worker nodes of a launcher's configuration, as many as it allows beside those that are there."""
    head = content["head_node_type"]
    types = [settings for name, settings in content["available_node_types"].items() if name != head]
    types.sort(key=lambda settings: -float(settings["resources"].get("GPU", 0)))
    most = int(content.get("max_workers", 2))
    nodes = [settings["resources"] for settings in types for _ in range(int(settings.get("max_workers", most)))]
    workers = sum(_HEAD not in node for node in node_resources())
    return [{name: float(amount) for name, amount in node.items()} for node in nodes[: max(most - workers, 0)]]


def await_room(share: Share, minutes: float) -> None:
    """Wait until a node has room for one process, and ask the autoscaler for the nodes of all.

    Args:
        share: share of the processes.
        minutes: longest wait.

    Raises:
        ClusterError: no such node came.
    """
    if share.room(node_resources()):
        return
    if minutes:
        log.info("no node has room for %s; waiting at most %g minutes for the autoscaler", share, minutes)
        with _demand_of(share):
            deadline = time.monotonic() + 60 * minutes
            while time.monotonic() < deadline:
                if share.room(node_resources()):
                    return
                time.sleep(1)
    waited = f"came within {minutes:g} minutes" if minutes else "is there"
    raise ClusterError(
        f"no node with {share.amounts} {waited}, and the run asks for {share}; the cluster has {_node_list()};"
        " ask for what it can start (cluster.gpus, cluster.workers, cluster.device), see ray status, or raise"
        " cluster.wait_minutes"
    )


@contextmanager
def _demand_of(share: Share) -> Iterator[None]:
    """Let the autoscaler see a demand for all processes of a share, as the pool of actors makes it later.

    A placement group that waits for room is such a demand, and starts no process. Tasks would be one too, but a driver
    of Ray 2.60 may end itself when it cancels a task that begins to run.
    """
    groups = [placement_group([share.bundle]) for _ in range(share.processes)]
    try:
        yield
    finally:
        for group in groups:
            remove_placement_group(group)


def _node_list() -> str:
    """The nodes that are there in words, with CPUs and GPUs of each kind."""
    kinds = Counter((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in node_resources())
    return ", ".join(f"{count} x {cpus:g} CPUs and {gpus:g} GPUs" for (cpus, gpus), count in sorted(kinds.items()))


@contextmanager
def logged_changes(share: Share) -> Iterator[None]:
    """Log each change of the nodes inside the block, and when none has room for the processes of a share."""
    ended = threading.Event()
    watch = threading.Thread(target=_log_changes, args=(share, ended), name="medfocus-nodes", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _log_changes(share: Share, ended: threading.Event) -> None:
    known = set(node_ids())
    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        nodes = _alive_nodes()
        current = {node["NodeID"] for node in nodes}
        if current == known:
            continue
        resources: Sequence[Mapping[str, float]] = [node["Resources"] for node in nodes]
        log.info(
            "nodes of the cluster: %d joined, %d left; now %s",
            len(current - known),
            len(known - current),
            describe(resources),
        )
        if not share.room(resources):
            log.warning("no node has room for the models now (%s); the run goes on when one comes", share)
        known = current
