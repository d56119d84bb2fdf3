"""Create if absent and replace if unchanged, which leases are built on."""

import errno
import multiprocessing
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.storage import ConditionError, Location, StorageError, locate
from tests.faults.injection import Answer, failing_s3

WRITERS = 16


@pytest.fixture(params=["local", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    name = f"conditions-{uuid.uuid4().hex}"
    if request.param == "s3":
        return locate(f"{request.getfixturevalue('s3')(name)}/out", StorageSection())
    return locate(str(tmp_path / "out") if request.param == "local" else f"memory://{name}/out", StorageSection())


def test_a_file_is_created_once_and_replaced_by_who_knows_its_version(place: Location) -> None:
    lease = place / "lease"
    assert not lease.replace(b"none", "no such version")
    assert lease.create(b"one") and not lease.create(b"two") and lease.read() == b"one"
    content, version = lease.read_version()
    assert content == b"one"
    assert lease.replace(b"three", version) and not lease.replace(b"four", version)
    assert lease.read_version()[0] == b"three" and lease.read_version()[1] != version
    lease.delete()
    assert not lease.replace(b"five", version) and not lease.exists() and lease.create(b"six")
    with pytest.raises(StorageError, match="no such file"):
        (place / "absent").read_version()


def test_one_of_many_threads_wins(place: Location) -> None:
    lease, names = place / "lease", [str(number) for number in range(WRITERS)]
    with ThreadPoolExecutor(WRITERS) as pool:
        created = list(pool.map(lambda name: lease.create(name.encode()), names))
        content, version = lease.read_version()
        replaced = list(pool.map(lambda name: lease.replace(b"new " + name.encode(), version), names))
    assert sum(created) == sum(replaced) == 1 and content == names[created.index(True)].encode()
    assert lease.read() == b"new " + names[replaced.index(True)].encode()


def _write(lease: Location, version: str | None) -> bool:
    content = uuid.uuid4().bytes
    return lease.create(content) if version is None else lease.replace(content, version)


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_one_of_many_processes_wins(place: Location) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number in range(5):
            lease = place / f"lease-{number}"
            assert sum(pool.map(_write, [lease] * WRITERS, [None] * WRITERS)) == 1
            assert sum(pool.map(_write, [lease] * WRITERS, [lease.read_version()[1]] * WRITERS)) == 1


def test_a_created_local_file_is_whole_and_no_draft_is_left(tmp_path: Path) -> None:
    """A reader that sees the file sees all of it, while writers compete."""
    lease, content = locate(str(tmp_path), StorageSection()) / "lease", bytes(1 << 20)
    seen: list[int] = []

    def read() -> None:
        while not lease.exists():
            pass
        seen.append(len(lease.read()))

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        assert sum(pool.map(lease.create, [content] * 4)) == 1
        reader.result(timeout=30)
    assert seen == [len(content)] and [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_a_local_file_system_without_links_creates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    lease = locate(str(tmp_path), StorageSection()) / "lease"
    with ThreadPoolExecutor(WRITERS) as pool:
        assert sum(pool.map(lease.create, [str(number).encode() for number in range(WRITERS)])) == 1


@pytest.fixture
def behind(s3: Callable[[str], str], s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """A function that returns a lease on an S3 server whose requests are answered in a way."""
    with failing_s3(s3_url, share=0, seed=0) as (url, proxy):
        bucket = s3(f"behind-{uuid.uuid4().hex}")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)

        def prepare(answer: Callable[[BaseHTTPRequestHandler, Callable[[], Answer]], Answer]) -> Location:
            proxy.answer = answer
            return locate(f"{bucket}/out", StorageSection()) / "lease"

        yield prepare


def error(status: int, code: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()
    return status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body


def ignores_conditions(request: BaseHTTPRequestHandler, serve: Callable[[], Answer]) -> Answer:
    del request.headers["If-None-Match"], request.headers["If-Match"]
    return serve()


def knows_no_conditions(request: BaseHTTPRequestHandler, serve: Callable[[], Answer]) -> Answer:
    conditional = "If-None-Match" in request.headers or "If-Match" in request.headers
    return error(501, "NotImplemented") if conditional else serve()


@pytest.mark.parametrize("answer", [ignores_conditions, knows_no_conditions])
def test_a_service_without_conditions_is_told_with_what_is_lost(behind: Callable, answer: Callable) -> None:
    lease = behind(answer)
    with pytest.raises(ConditionError, match="no conditional writes, so that it cannot hold a lease") as caught:
        lease.create(b"one")
    assert str(caught.value).startswith(f"{lease.uri}: ") and "\n" not in str(caught.value)
    with pytest.raises(ConditionError):
        lease.replace(b"two", "version")
    assert locate(lease.uri.removesuffix("/lease"), StorageSection()).files(recursive=True) == []


def test_a_write_whose_answer_is_lost_has_won(behind: Callable) -> None:
    """The SDK writes again, and the condition then fails by the first write."""
    lost: list[str] = []

    def lose(request: BaseHTTPRequestHandler, serve: Callable[[], Answer]) -> Answer:
        answer = serve()
        if request.command == "PUT" and request.path.endswith("/lease") and len(lost) in (0, 2):
            lost.append(request.path)
            return error(500, "InternalError")
        lost.extend([request.path] * (request.command == "PUT" and request.path.endswith("/lease")))
        return answer

    lease = behind(lose)
    assert lease.create(b"one") and len(lost) == 2
    assert lease.replace(b"two", lease.read_version()[1]) and len(lost) == 4 and lease.read() == b"two"


def test_a_write_that_meets_another_is_tried_again(behind: Callable) -> None:
    conflicts = iter([True, True])

    def meet(request: BaseHTTPRequestHandler, serve: Callable[[], Answer]) -> Answer:
        if request.command == "PUT" and request.path.endswith("/lease") and next(conflicts, False):
            return error(409, "ConditionalRequestConflict")
        return serve()

    assert behind(meet).create(b"one") and next(conflicts, None) is None
