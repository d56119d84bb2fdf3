"""A Ray cluster with a real autoscaler on one machine: a head without CPUs, and nodes that come when work asks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)

from tests import servers

_START = 90.0
_AUTOSCALER = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


@dataclass(frozen=True)
class AutoscalingCluster:
    """A cluster that runs.

    Args:
        address: address of the head, for ``cluster.address``.
        folder: folder of Ray's files, which is part of the command line of each of its processes.
    """

    address: str
    folder: Path

    def processes(self) -> list[psutil.Process]:
        """Processes of Ray itself: their command lines name the folder."""
        return [process for process, line in _command_lines() if str(self.folder) in line]

    def raylets(self) -> list[psutil.Process]:
        """The process that manages a node, for each node but the head, oldest first."""
        pairs = [(process, line) for process, line in _command_lines() if str(self.folder) in line]
        raylets = {process.pid: process for process, line in pairs if "raylet/raylet " in line and "--head" not in line}
        # A raylet that starts a worker is there twice for a moment: the child has its command line at first.
        children = {child.pid for raylet in raylets.values() for child in _children(raylet)}
        return sorted((raylets[pid] for pid in raylets.keys() - children), key=lambda process: process.create_time())

    def actors(self) -> list[psutil.Process]:
        """Processes that hold the models, or begin to: Ray puts the name of the actor in place of the command line."""
        return [
            worker
            for raylet in self.raylets()
            for worker in _children(raylet)
            if any("MapWorker" in part for part in _command_line(worker))
        ]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:  # it has just ended
        return []


def _command_lines() -> list[tuple[psutil.Process, str]]:
    return [(process, " ".join(_command_line(process))) for process in psutil.process_iter()]


def configuration(address: str, types: dict[str, dict[str, Any]], idle_minutes: float) -> dict[str, Any]:
    """The configuration of the cluster's autoscaler, as Ray's cluster launcher would leave it on the head.

    Args:
        address: address of the head.
        types: ``resources``, ``min_workers`` and ``max_workers`` of each type of node.
        idle_minutes: time after which a node without work is ended.
    """
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "one-machine",
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "idle_timeout_minutes": idle_minutes,
        "upscaling_speed": 100,
        "provider": {
            # By its class: the defaults that Ray reads for ``fake_multinode`` are not in its wheel.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: head,
            **{name: {"node_config": {}, **kind} for name, kind in types.items()},
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        **{f"{name}_commands": [] for name in commands},
    }


@contextmanager
def autoscaling_cluster(
    folder: Path, types: dict[str, dict[str, Any]], idle_minutes: float, environment: Mapping[str, str]
) -> Iterator[AutoscalingCluster]:
    """Start a head without CPUs whose autoscaler (version 2) starts nodes as processes of this machine.

    Args:
        folder: short path of a folder for Ray's files.
        types: ``resources``, ``min_workers`` and ``max_workers`` of each type of node.
        idle_minutes: time after which a node without work is ended.
        environment: variables of all processes of the cluster.
    """
    port = servers.free_port()
    cluster = AutoscalingCluster(f"127.0.0.1:{port}", folder)
    file, log = folder / "autoscaler.json", folder / "head.log"
    file.write_text(json.dumps(configuration(cluster.address, types, idle_minutes)))
    options = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 0,
        "num-gpus": 0,
        "object-store-memory": 200_000_000,
        "temp-dir": folder,
        "include-dashboard": "false",
        "dashboard-agent-listen-port": 0,
        "ray-client-server-port": servers.free_port(),
        "autoscaling-config": file,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    with log.open("w") as output:
        start = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env={**os.environ, **_AUTOSCALER, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START
        while "Ray runtime started" not in log.read_text():
            assert start.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield cluster
    finally:
        workers = [child for raylet in cluster.raylets() for child in _children(raylet)]
        for process in [*cluster.processes(), *workers]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        start.kill()
        start.wait()
