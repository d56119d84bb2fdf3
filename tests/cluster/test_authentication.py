"""Who is admitted to a cluster, and what others are told. Each is a process with an account of its own."""

import http.client
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from medfocus.cluster import authentication
from tests import servers
from tests.cluster.conftest import TOKEN, account

pytestmark = pytest.mark.clusters

DRIVER = """
import sys
from medfocus.cluster.connect import connected
from medfocus.cluster.errors import ClusterError
try:
    with connected(sys.argv[1], None) as resources:
        print("admitted", resources["CPU"])
except ClusterError as error:
    print(error)
"""
CLIENT = """
import sys
from medfocus.cluster.errors import ClusterError
from medfocus.cluster.jobs import JobServer
try:
    print("admitted", JobServer(sys.argv[1]).jobs())
except ClusterError as error:
    print(error)
"""
# A Ray of a command, which goes on until its stdin is closed.
COMMAND = """
import sys
from medfocus.cluster.connect import connected
with connected(None, 1):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
# What a stranger would call to see, to change or to run something, one in each kind of Ray's processes.
CALLS = (
    "NodeInfoGcsService/CheckAlive",
    "InternalKVGcsService/InternalKVGet",
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "ReporterService/GetTraceback",
)


def tell(code: str, address: str, environment: dict[str, str]) -> str:
    """The line that a process with this environment prints."""
    call = [sys.executable, "-c", code, address]
    ended = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120, check=True)
    (line,) = ended.stdout.splitlines()
    assert TOKEN not in ended.stdout + ended.stderr
    return line


@pytest.mark.parametrize("kind", ["driver", "client"])
@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({"RAY_AUTH_TOKEN": TOKEN}, "admitted"),
        ({"RAY_AUTH_TOKEN_PATH": "FILE"}, "admitted"),
        ({}, "the cluster asks for a token, and this process has none; take the token from"),
        ({"RAY_AUTH_TOKEN": "b" * 64}, "the cluster asks for another token than that of this process; take the"),
        ({"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is disabled here; set it to token"),
    ],
)
def test_a_cluster_with_a_token_admits_who_has_it(
    head: servers.RayHead, tmp_path: Path, kind: str, variables: dict[str, str], answer: str
) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    given = {name: value.replace("FILE", str(tmp_path / "token")) for name, value in variables.items()}
    code, address = (DRIVER, head.address) if kind == "driver" else (CLIENT, head.url)
    assert answer in tell(code, address, account(tmp_path, **given))


def test_ray_client_asks_for_the_token_too(head: servers.RayHead, tmp_path: Path) -> None:
    from ray.util import get_node_ip_address

    address = f"{get_node_ip_address()}:{head.client_port}"
    deadline = time.monotonic() + 30
    while answer(address, "RayletDriver/ClusterInfo") == grpc.StatusCode.UNAVAILABLE and time.monotonic() < deadline:
        time.sleep(0.5)  # it starts after the job server
    environment = account(tmp_path, RAY_AUTH_TOKEN="b" * 64)
    assert "the cluster asks for another token" in tell(DRIVER, f"ray://{address}", environment)


@pytest.fixture(scope="module")
def open_head() -> Iterator[servers.RayHead]:
    """A cluster that admits everybody."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        with servers.ray_head(Path(folder), account(Path(folder), RAY_AUTH_MODE="disabled")) as started:
            yield started


@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_TOKEN": TOKEN}])
def test_a_cluster_without_a_token_admits_everybody(
    open_head: servers.RayHead, tmp_path: Path, variables: dict[str, str]
) -> None:
    environment = account(tmp_path, **variables)
    assert tell(DRIVER, open_head.address, environment) == "admitted 1.0"
    assert tell(CLIENT, open_head.url, environment).startswith("admitted [")


def test_a_token_is_found_where_ray_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medfocus.cluster.environment import authentication_token

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert authentication_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home\n")
    assert authentication_token() == "of the home"
    (tmp_path / "file").write_text("of a file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert authentication_token() == "of a file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert authentication_token() == "of the environment"


@pytest.fixture
def own_ray(tmp_path: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A command that has started Ray, and the address of that Ray."""
    call = [sys.executable, "-c", COMMAND]
    process = subprocess.Popen(
        call, env=account(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin and process.stdout
    address = process.stdout.readline().strip()
    yield psutil.Process(process.pid), address
    process.stdin.close()
    process.wait(60)


def test_a_stranger_is_refused_by_every_process_of_a_ray_that_a_command_started(
    own_ray: tuple[psutil.Process, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, address = own_ray
    assert "asks for a token, and this process has none" in tell(DRIVER, address, account(tmp_path))
    assert "asks for another token" in tell(DRIVER, address, account(tmp_path, RAY_AUTH_TOKEN="b" * 64))
    assert not (tmp_path / ".ray" / "auth_token").exists()
    refused = set()
    for host, port in listening(command):
        answers = {call: answer(f"{host}:{port}", call) for call in CALLS}
        assert grpc.StatusCode.OK not in answers.values()
        refused |= {call for call, code in answers.items() if code == grpc.StatusCode.UNAUTHENTICATED}
        assert submit_by_hand(f"http://{host}:{port}", tmp_path / "touched") != 200
    assert refused == set(CALLS)
    assert not (tmp_path / "touched").exists()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert authentication.is_control_service(address)  # which the calls above have reached


def listening(command: psutil.Process) -> list[tuple[str, int]]:
    """Where a process and its children listen."""
    places = []
    for process in (command, *command.children(recursive=True)):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                host = connection.laddr.ip
                places.append(("127.0.0.1" if host in ("0.0.0.0", "::", "::1") else host, connection.laddr.port))
    assert len(places) > 4
    return places


def answer(address: str, call: str) -> grpc.StatusCode:
    """How a process of Ray answers a call without a token."""
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=5)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def submit_by_hand(url: str, file: Path) -> int | None:
    """HTTP status of an attempt to submit a job to a node; None where nothing speaks HTTP."""
    status = None
    for path in ("/api/jobs/", "/api/job_agent/jobs/"):
        body = json.dumps({"entrypoint": f"touch {file}"}).encode()
        request = urllib.request.Request(url + path, data=body, headers={"Content-Type": "application/json"})
        try:
            return int(urllib.request.urlopen(request, timeout=5).status)
        except urllib.error.HTTPError as error:
            status = error.code
        except (OSError, http.client.HTTPException):
            continue
    return status
