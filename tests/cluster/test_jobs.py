"""Jobs on a real cluster: submitted, followed, listed and stopped, by the command as a user runs it."""

import http.server
import json
import os
import pty
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from medfocus.cluster import jobs as cluster_jobs
from medfocus.cluster.errors import ClusterError
from medfocus.cluster.jobs import JobServer
from medfocus.pipeline.commands import jobs
from medfocus.pipeline.data import records
from medfocus.pipeline.errors import MedFocusError, TooManyQuarantined
from tests.cluster.breakable import Proxy
from tests.cluster.conftest import TOKEN, account
from tests.servers import RayHead, free_port

pytestmark = pytest.mark.clusters

SECRET = "very-secret-word"


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prefix with an image in quarantine; its path has a blank and a quote."""
    folder = tmp_path_factory.mktemp("archive") / "it's a $HOME" / "quarantine"
    folder.mkdir(parents=True)
    row = {"image_id": "a", "source_uri": "x", "stage": "decode", "error": "Odd", "message": "Größe"}
    pq.write_table(records.QUARANTINE.empty_table().from_pylist([row]), folder / "part.parquet")
    return str(folder.parent)


@pytest.fixture(scope="session")
def user(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who has the token in a file, and credentials that are no business of the cluster."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    secrets = {"AWS_ACCESS_KEY_ID": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-central-1"}
    tracking = {"MLFLOW_TRACKING_URI": f"https://reader:{SECRET}@mlflow.example.org"}
    return account(home, RAY_API_SERVER_ADDRESS=head.url, **secrets, **tracking)


@pytest.fixture(scope="session")
def medfocus(user: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a command from a folder of the user's own."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "medfocus", *arguments]
        ended = subprocess.run(
            call, env=user, cwd=user["HOME"], capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr and SECRET not in ended.stdout + ended.stderr
        return ended

    return run


@pytest.fixture
def server(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> JobServer:
    """A client of this process. Ray has read at its import that no token is used, so that this one shows it itself."""
    headers = "ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled"
    monkeypatch.setattr(headers, lambda given: {"Authorization": f"Bearer {TOKEN}"})
    return JobServer(head.url)


def test_a_command_runs_on_the_cluster_as_it_was_written(
    medfocus: Callable[..., subprocess.CompletedProcess[str]], user: dict[str, str], archive: str, head: RayHead
) -> None:
    template = "a: \"{}\" 'x' $HOME #1 Größe"
    settings = Path(user["HOME"], "settings.yaml")
    settings.write_text(f"seed: 3\nmodel: {{template: {json.dumps(template)}}}\ncluster: {{address: auto}}\n")
    ended = medfocus(
        "submit", "--id", "first", "--", "medfocus", "quarantine", archive, "--config", settings.name, "--json"
    )
    assert json.loads(ended.stdout.splitlines()[-1])["quarantined"] == 1 and "Größe" in ended.stdout
    assert "job first is submitted" in ended.stderr and "cluster.address is left out" in ended.stderr
    listed = json.loads(medfocus("jobs", "--json").stdout.splitlines()[-1])["jobs"]
    (job,) = (job for job in listed if job["id"] == "first")
    assert job["state"] == "SUCCEEDED" and job["exit_code"] == 0 and job["seconds"] > 0
    sent = shlex.split(job["command"])
    assert f"model.template={template}" in sent or json.dumps(template) in " ".join(sent)
    assert archive in sent and not [part for part in sent if "address" in part or "config" in part]
    request = urllib.request.Request(f"{head.url}/api/jobs/first", headers={"Authorization": f"Bearer {TOKEN}"})
    shown = urllib.request.urlopen(request).read().decode()
    assert SECRET not in shown and "https://mlflow.example.org" in shown and "eu-central-1" in shown
    assert TOKEN not in shown and '"RAY_JOB_STOP_WAIT_TIME_S": "60"' in shown


def test_a_wrong_call_ends_as_it_does_without_a_cluster(
    medfocus: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ended = medfocus("submit", "--json", "--", "quarantine", "/nothing/here", code=2)
    assert "ERROR /nothing/here: nothing is there" in ended.stderr and ended.stdout == ""


def test_a_detached_job_is_followed_and_its_id_is_used_once(
    medfocus: Callable[..., subprocess.CompletedProcess[str]], archive: str, head: RayHead
) -> None:
    ended = medfocus("submit", "--detach", "--json", "--id", "alone", "--", "quarantine", archive)
    assert json.loads(ended.stdout) == {"job": "alone", "address": head.url}
    followed = medfocus("jobs", "alone", "--logs")
    assert json.loads(followed.stdout.splitlines()[-1])["quarantined"] == 1
    assert "alone" in medfocus("jobs").stdout and "SUCCEEDED" in medfocus("jobs", "alone").stdout
    assert "job alone exists already" in medfocus("submit", "--id", "alone", "--", "quarantine", archive, code=1).stderr
    assert "knows no job other" in medfocus("jobs", "other", code=1).stderr


def start(server: JobServer, id: str, script: str) -> None:
    """Submit a shell script, which ends when and as it likes."""
    server._client.submit_job(submission_id=id, entrypoint=script)


def test_results_and_log_lines_are_told_apart_in_order(server: JobServer, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["12:00:00 INFO one", "RESULT two", "RESULT three ", "RESULT", "four"]
    start(server, "order", "; ".join(f"printf '{part}\\n'; sleep 0.3" for part in parts) + "; printf '12:00:00 end'")
    jobs.follow(server, "order")
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["two", "three "]
    assert printed.err.splitlines() == ["12:00:00 INFO one", "RESULT", "four", "12:00:00 end"]


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("echo 'RESULT {\"rows\": 3}'; exit 3", 3, "ended with exit code 3"),
        ("exit 2", 2, "ended with exit code 2"),
        ("exit 1", 1, "ended with exit code 1"),
        ("no-such-medfocus", 1, "start Ray with its folder on PATH"),
        ("kill -9 $$", 1, "failed with exit code -9"),
    ],
)
def test_the_exit_code_of_a_job_is_handed_on(server: JobServer, script: str, code: int, message: str) -> None:
    id = f"code-{abs(hash(script))}"
    start(server, id, script)
    with pytest.raises(MedFocusError, match=message) as caught:
        jobs.follow(server, id, as_json=True)
    assert caught.value.exit_code == code
    assert code != 3 or (isinstance(caught.value, TooManyQuarantined) and caught.value.result == {"rows": 3})


@pytest.fixture
def followed(
    user: dict[str, str], server: JobServer
) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int, str]]]:
    """A function that begins to submit a command that takes a while, on a terminal; the job is stopped in the end."""
    ids = []

    def begin(id: str, terminal: bool) -> tuple[subprocess.Popen[str], int, str]:
        ids.append(id)
        master, slave = pty.openpty()
        call = [sys.executable, "-m", "medfocus", "submit", "--id", id, "--", "doctor"]
        stdin = slave if terminal else subprocess.DEVNULL
        process = subprocess.Popen(
            call, env=user, stdin=stdin, stdout=slave, stderr=slave, start_new_session=True, text=True
        )
        os.close(slave)
        text = read_until(master, "ok     python")
        return process, master, text

    yield begin
    for id in ids:
        server.stop(id)


def read_until(terminal: int, text: str) -> str:
    """What is written on a terminal, up to a text."""
    written = ""
    while text not in written:
        part = os.read(terminal, 1000)
        assert part, written
        written += part.decode()
    return written


@pytest.mark.usefixtures("signals_by_default")
@pytest.mark.parametrize(("answer", "state"), [("y\n", "STOPPED"), ("\n", "RUNNING")])
def test_ctrl_c_on_a_terminal_asks(
    followed: Callable[..., tuple[subprocess.Popen[str], int, str]], server: JobServer, answer: str, state: str
) -> None:
    id = f"asked-{state.lower()}"
    process, terminal, _ = followed(id, terminal=True)
    process.send_signal(signal.SIGINT)
    read_until(terminal, f"stop job {id}?")
    os.write(terminal, answer.encode())
    text = read_until(terminal, "goes on from there" if state == "STOPPED" else "--stop stops it\r\n")
    assert process.wait(60) == 1 and f"job {id}" in text
    assert server.job(id).state == state
    assert state != "STOPPED" or "stopped; the same call goes on from here" in "".join(server.last_lines(id, 5))


@pytest.mark.usefixtures("signals_by_default")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_client_that_is_ended_leaves_the_job_running(
    followed: Callable[..., tuple[subprocess.Popen[str], int, str]], server: JobServer, number: signal.Signals
) -> None:
    id = f"left-{number.name.lower()}"
    process, terminal, _ = followed(id, terminal=number == signal.SIGTERM)
    process.send_signal(number)
    if number != signal.SIGKILL:
        assert f"medfocus jobs {id} --stop stops it" in read_until(terminal, "stops it\r\n")
    assert process.wait(60) == (-9 if number == signal.SIGKILL else 1)
    assert server.job(id).state == "RUNNING"


def test_a_job_that_runs_is_stopped(
    medfocus: Callable[..., subprocess.CompletedProcess[str]], server: JobServer
) -> None:
    # Ray's own patience is three seconds.
    script = "trap 'sleep 4; echo stopped in order; exit' TERM; echo begun; while true; do sleep 0.2; done"
    environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    server._client.submit_job(submission_id="endless", entrypoint=script, runtime_env=environment)
    deadline = time.monotonic() + 60
    while "begun" not in server.last_lines("endless", 5):  # Ray writes its own line before or after it
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "STOPPED" in medfocus("jobs", "endless", "--stop").stdout
    ended = medfocus("jobs", "endless", "--logs", code=1)
    assert "stopped in order" in ended.stderr and "job endless was stopped" in ended.stderr


def test_a_broken_connection_is_made_again(server: JobServer, head: RayHead) -> None:
    start(server, "numbers", "for number in $(seq 8); do echo line $number; sleep 0.4; done")
    with Proxy(head.url) as proxy:
        lines = []
        for line in JobServer(proxy.url).follow("numbers"):
            lines.append(line)
            if line in ("line 2", "line 5"):
                proxy.break_connections()
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(1, 9)]


def test_a_connection_that_stays_broken_is_told(
    server: JobServer, head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_jobs, "_PATIENCE", 1.0)
    start(server, "lost", "echo line; sleep 60")
    with Proxy(head.url) as proxy:
        with pytest.raises(ClusterError, match="job lost goes on while its cluster does: connect again"):
            for line in JobServer(proxy.url).follow("lost"):
                if line == "line":
                    proxy.close()
    server.stop("lost")


def test_a_request_whose_answer_is_lost_makes_one_job(server: JobServer, head: RayHead, archive: str) -> None:
    with Proxy(head.url) as proxy:
        through = JobServer(proxy.url)
        proxy.swallow_answer("POST /api/jobs/")  # whose loss and whose repetition are not noticed by the job server
        through.submit("once", ["quarantine", archive], {})
        assert proxy.swallowed == 1
    assert [job.id for job in server.jobs()].count("once") == 1
    assert jobs.follow(server, "once") == {}


class Page(http.server.BaseHTTPRequestHandler):
    """A web server that knows nothing of jobs: it answers everything with a page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_is_no_job_server_is_named(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_jobs, "_LONGEST_REQUEST", 1.0)
    port = free_port()
    with pytest.raises(
        ClusterError, match=f"no job server answers at http://127.0.0.1:{port} .*open a tunnel to its port"
    ):
        JobServer(f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match="is where drivers connect to Ray; give the port of the dashboard"):
        JobServer(head.address)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ClusterError, match="does not answer as Ray's job server does"):
            JobServer(f"http://127.0.0.1:{silent.getsockname()[1]}")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="does not answer as Ray's job server does"):
            JobServer(f"http://127.0.0.1:{pages.server_port}")
        pages.shutdown()


@pytest.mark.parametrize("address", ["ray://head:10001", "s3://x", "http://", "http://head:port"])
def test_an_address_that_is_no_url_is_named(address: str) -> None:
    with pytest.raises(ClusterError, match=f"{address}: .*--address"):
        JobServer(address)


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "auto"}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "http://head:8265/"}, "http://head:8265"),
        (
            {"RAY_ADDRESS": "head:6379", "RAY_API_SERVER_ADDRESS": "https://jobs.example.org"},
            "https://jobs.example.org",
        ),
    ],
)
def test_the_environment_names_the_job_server(
    variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cluster_jobs._url(None) == url
    assert cluster_jobs._url("given:1") == "http://given:1"
