"""A small cloud on one machine, in which ``ray up`` starts real nodes: the provider that Ray's launcher calls.

A node is a process in namespaces of its own: it has its own network with an address and a loopback, sees its own
processes, and has its own ``/dev/shm`` and ``/tmp/ray``. ``Cloud`` makes and ends nodes, and runs commands on them. It
is a server, since the autoscaler on the head calls it too. ``Machines`` is Ray's node provider, and ``Shell`` what Ray
uses in place of ssh. Both are named in the configuration by the public ``type: external``.
"""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from xmlrpc.client import Binary, Fault, ServerProxy
from xmlrpc.server import SimpleXMLRPCServer

import psutil
from ray.autoscaler._private.command_runner import _with_environment_variables
from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from tests.cluster.relay import relay

NETWORK = "10.77.0"
GATEWAY = f"{NETWORK}.254"
PORT = 8099
_BOOT = """
mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray
ip link set lo up && echo booted
while :; do sleep 3600 & wait $!; done
"""


class Cloud:
    """Makes nodes, ends them, and runs commands on them.

    Args:
        folder: where each node has its home folder.
        environment: environment variables of every node, as those of an image.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self.refused: set[str] = set()  # node types of which the cloud has none
        self.asked: list[str] = []  # node types that were asked for, in order

    def create(self, tags: dict[str, str]) -> str:
        """Start a node; its id. Refuses types in ``refused``."""
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        self.asked.append(node_type)
        if node_type in self.refused:
            raise ValueError("no capacity")
        with self._lock:
            number = next(self._numbers)
            node = f"node-{number}"
            Path(self.home(node)).mkdir(parents=True)
            flags = ["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
            process = subprocess.Popen(["unshare", *flags, "bash", "-c", _BOOT], stdout=subprocess.PIPE, text=True)
            assert process.stdout and process.stdout.readline() == "booted\n"
            self._processes[node], self._tags[node] = process, tags
            inside = f"ip addr add {NETWORK}.{number}/24 dev eth0 && ip link set eth0 up && ip route add default via"
            lines = f"""ip link add veth{number} type veth peer name eth0 netns {self._init(node)}
                ip link set veth{number} master br0 up"""
            subprocess.run(["bash", "-ec", lines], check=True)
            assert self.run(node, f"{inside} {GATEWAY}")[0] == 0
            return node

    def home(self, node: str) -> str:
        """Home folder of a node."""
        return str(self._folder / node)

    def nodes(self) -> dict[str, dict[str, str]]:
        """Tags of all nodes, by id."""
        return {node: dict(tags) for node, tags in self._tags.items()}

    def tag(self, node: str, tags: dict[str, str]) -> bool:
        """Set tags of a node."""
        self._tags[node] |= tags
        return True

    def terminate(self, node: str) -> bool:
        """End a node with everything that runs on it."""
        with self._lock:
            self._tags.pop(node, None)
            process = self._processes.pop(node, None)
        if process:
            process.kill()
            process.wait()
        return True

    def run(self, node: str, command: str) -> tuple[int, Binary]:
        """Run a command on a node; its exit code and what it printed."""
        variables = {"HOME": self.home(node), **self._environment}
        call = [*self._enter(node), "env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        process = subprocess.run(
            [*call, "bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return process.returncode, Binary(process.stdout)

    def tunnel(self, node: str, port: int) -> str:
        """Open a socket in the file system that leads to a port of the node's loopback; its path."""
        path = Path(self.home(node), f"port-{port}")
        if not path.exists():
            call = [*self._enter(node), sys.executable, "-m", "tests.cluster.relay", str(path), f"127.0.0.1:{port}"]
            subprocess.Popen(call)
            while not path.exists():
                time.sleep(0.05)
        return str(path)

    def _init(self, node: str) -> int:
        """Process id of the first process of a node, seen from here."""
        (init,) = psutil.Process(self._processes[node].pid).children()
        return init.pid

    def _enter(self, node: str) -> list[str]:
        return ["nsenter", "--target", str(self._init(node)), "--net", "--mount", "--pid"]


class _Server(ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True


def serve(cloud: Cloud) -> None:
    """Answer calls of the cloud in a thread."""
    server = _Server((GATEWAY, PORT), logRequests=False, allow_none=True)
    server.register_instance(cloud)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _cloud() -> Any:
    return ServerProxy(f"http://{GATEWAY}:{PORT}", allow_none=True)


class Machines(NodeProvider):
    """Ray's node provider for the nodes of ``Cloud``."""

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Ids of the nodes that have these tags."""
        return [node for node, tags in _cloud().nodes().items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        """Whether a node is there."""
        return node_id in _cloud().nodes()

    def is_terminated(self, node_id: str) -> bool:
        """Whether a node is gone."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Tags of a node."""
        tags: dict[str, str] = _cloud().nodes().get(node_id, {})
        return tags

    def external_ip(self, node_id: str) -> str:
        """Address of a node."""
        return f"{NETWORK}.{node_id.partition('-')[2]}"

    internal_ip = external_ip

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start nodes."""
        try:
            return {_cloud().create(tags): {} for _ in range(count)}
        except Fault as error:
            raise NodeLaunchException("InsufficientInstanceCapacity", error.faultString, sys.exc_info()) from error

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Set tags of a node."""
        _cloud().tag(node_id, {name: str(value) for name, value in tags.items()})

    def terminate_node(self, node_id: str) -> None:
        """End a node."""
        _cloud().terminate(node_id)

    def get_command_runner(self, log_prefix: str, node_id: str, *_: Any, **__: Any) -> "Shell":
        """What runs commands on a node; nodes have what the image would have, so that there is no container."""
        return Shell(node_id)


class Shell(CommandRunnerInterface):
    """Runs commands on a node of ``Cloud``, copies files to it and opens tunnels."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._cloud = _cloud()

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,
        port_forward: list[tuple[int, int]] | None = None,
        with_output: bool = False,
        environment_variables: dict[str, object] | None = None,
        run_env: str = "auto",
        ssh_options_override_ssh_key: str = "",
        shutdown_after_run: bool = False,
    ) -> str:
        """Run a command, or keep tunnels open where there is none; what it printed, if it is asked for."""
        if run_env == "host":
            return ""  # there is no machine behind the container
        if port_forward:
            ((here, there),) = port_forward
            relay(("127.0.0.1", here), self._cloud.tunnel(self._node, there))
        command = _with_environment_variables(cmd or "true", environment_variables or {})
        code, output = self._cloud.run(self._node, command)
        text = output.data.decode()
        print(text, end="")
        if code:
            raise subprocess.CalledProcessError(code, cmd or "", text)
        return str(text) if with_output else ""

    def run_rsync_up(self, source: str, target: str, options: dict[str, Any] | None = None) -> None:
        """Copy a file, or the content of a folder, to a node; nodes see all files but those below ``/tmp/ray``."""
        place = Path(target.replace("~", self._cloud.home(self._node), 1))
        place.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
        else:
            shutil.copy(source, place)

    def remote_shell_command_str(self) -> str:
        """A call that opens a shell."""
        return f"nsenter into {self._node}\n"
