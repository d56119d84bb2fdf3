"""How a process connects to S3: endpoint, region, profile, credentials, retries, and what it leaves behind."""

import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import boto3
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import s3_connection, s3_objects
from medfocus.pipeline.data.storage import AccessError, Location, ServiceError, StorageError, locate, resolve_storage
from tests import servers
from tests.faults.injection import Answer, Proxy, failing_s3

Serve = Callable[[], Answer]


def error(status: int, code: str, extra: str = "", **headers: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>refused</Message>{extra}</Error>".encode()
    return status, {"Content-Type": "application/xml", "Content-Length": str(len(body)), **headers}, body


@pytest.fixture
def front(s3_url: str, s3: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A server before S3 that the environment names; a test says how it answers."""
    with failing_s3(s3_url, share=0, seed=0) as (url, proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


@pytest.fixture
def requests(front: Proxy) -> list[Message]:
    """Headers of all requests to ``front``, with the method and path as Request."""
    seen: list[Message] = []

    def record(request: BaseHTTPRequestHandler, serve: Serve) -> Answer:
        request.headers["Request"] = f"{request.command} {request.path}"
        seen.append(request.headers)
        return serve()

    front.answer = record
    return seen


@pytest.fixture
def bucket(s3_url: str, s3: Callable[[str], str]) -> str:
    """URI of a new bucket with the object ``file``."""
    name = f"connection-{uuid.uuid4().hex}"
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_url)
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="file", Body=b"content", ACL="public-read")
    return f"s3://{name}"


def test_region_token_and_path_style_are_the_environments(
    bucket: str, requests: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-session-token")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert (locate(bucket, StorageSection()) / "file").read() == b"content"
    name = bucket.removeprefix("s3://")
    for headers in requests:
        assert "/eu-north-1/s3/aws4_request" in headers["Authorization"] and "Credential=testing/" in str(headers)
        assert headers["X-Amz-Security-Token"] == "the-session-token"
        assert headers["Request"].split()[1].startswith(f"/{name}") and name not in headers["Host"]
    assert len(requests) == 2  # one to see whether the bucket can be used, one to read


def test_the_configuration_is_before_the_environment(
    bucket: str, front: Proxy, requests: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{front.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{servers.free_port()}")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    locate(bucket, StorageSection(s3_endpoint=url, s3_region="ap-south-1"))
    assert len(requests) == 1 and "/ap-south-1/s3/" in requests[0]["Authorization"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    locate(bucket, resolve_storage(StorageSection()))
    assert len(requests) == 2 and "/eu-north-1/s3/" in requests[1]["Authorization"]


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes a profile with these lines the one source of settings."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "archive")

    def write(lines: str) -> None:
        (tmp_path / "config").write_text(lines)

    return write


KEYS = "aws_access_key_id = of-the-profile\naws_secret_access_key = secret-of-the-profile\n"


@pytest.mark.parametrize("service", [False, True])
def test_a_profile_gives_endpoint_region_and_credentials(
    bucket: str, front: Proxy, requests: list[Message], profile: Callable[[str], None], service: bool
) -> None:
    endpoint = f"endpoint_url = http://127.0.0.1:{front.server_address[1]}\n"
    lines = f"[profile archive]\nregion = sa-east-1\n{KEYS}"
    if service:
        lines += f"services = own\n[services own]\ns3 =\n  {endpoint}"
    else:
        lines += endpoint
    profile(lines)
    assert (locate(bucket, StorageSection()) / "file").read() == b"content"
    assert all("Credential=of-the-profile/" in headers["Authorization"] for headers in requests) and len(requests) == 2
    assert all("/sa-east-1/s3/" in headers["Authorization"] for headers in requests)


def test_missing_credentials_and_profiles_are_reported(
    bucket: str, front: Proxy, profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{front.server_address[1]}"
    section = StorageSection(s3_endpoint=url)
    profile("[profile archive]\nregion = sa-east-1\n")
    with pytest.raises(AccessError, match=r"no credentials; set AWS_PROFILE.*storage\.anonymous=true"):
        locate(bucket, section)
    profile(f"[profile another]\n{KEYS}")
    with pytest.raises(AccessError, match="AWS_PROFILE names a profile that does not exist"):
        locate(bucket, section)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(AccessError, match="half of the credentials is missing"):
        locate(bucket, section)


def test_a_public_bucket_is_read_without_credentials(
    bucket: str, front: Proxy, requests: list[Message], profile: Callable[[str], None]
) -> None:
    url = f"http://127.0.0.1:{front.server_address[1]}"
    profile("[profile archive]\n")
    place = locate(bucket, StorageSection(s3_endpoint=url, anonymous=True))
    assert place.files() == ["file"] and (place / "file").read() == b"content"
    assert not any("Authorization" in headers for headers in requests)


def in_frankfurt(named: bool) -> Callable[[BaseHTTPRequestHandler, Serve], Answer]:
    """Answers of a bucket in eu-central-1 to requests that are signed for another region."""

    def answer(request: BaseHTTPRequestHandler, serve: Serve) -> Answer:
        if "/eu-central-1/s3/" in request.headers["Authorization"]:
            return serve()
        if not named:
            return error(301, "PermanentRedirect")
        headers = {"x-amz-bucket-region": "eu-central-1"}
        if request.command == "HEAD":
            return 400, {**headers, "Content-Length": "0"}, b""
        return error(400, "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>", **headers)

    return answer


def test_a_bucket_in_another_region_is_followed(bucket: str, front: Proxy) -> None:
    front.answer = in_frankfurt(named=True)
    place = locate(bucket, StorageSection())
    (place / "new").write(b"1")
    assert (place / "new").read() == b"1" and (place / "new").exists() and place.files() == ["file", "new"]
    assert pickle.loads(pickle.dumps(place)).files() == ["file", "new"]


def test_a_region_that_cannot_be_followed_is_reported(bucket: str, front: Proxy) -> None:
    front.answer = in_frankfurt(named=False)
    with pytest.raises(AccessError, match=r"in another region, or the endpoint moved; correct storage\.s3_region"):
        locate(bucket, StorageSection())
    answer = error(400, "IllegalLocationConstraintException", **{"x-amz-bucket-region": "eu-west-3"})
    front.answer = lambda request, serve: answer if request.command == "PUT" else serve()
    with pytest.raises(AccessError, match=r"the bucket is in region eu-west-3; set storage\.s3_region=eu-west-3"):
        locate(bucket, StorageSection()).__truediv__("new").write(b"1")


CODES = {
    "ExpiredToken": (400, "the credentials have expired; renew them"),
    "InvalidToken": (400, "the session token is not valid"),
    "InvalidAccessKeyId": (403, "the access key is not known"),
    "SignatureDoesNotMatch": (403, "the secret key does not fit"),
    "RequestTimeTooSkewed": (403, "the clock of this machine is wrong"),
    "AccessDenied": (403, "access denied; check the credentials and their policy"),
    "NoSuchBucket": (404, "the bucket does not exist"),
}


@pytest.mark.parametrize("code", CODES)
def test_a_refusal_is_reported_with_its_mend_and_tried_once(bucket: str, front: Proxy, code: str) -> None:
    place = locate(bucket, StorageSection()) / "file"
    status, mend = CODES[code]
    tries: list[str] = []

    def refuse(request: BaseHTTPRequestHandler, serve: Serve) -> Answer:
        tries.append(request.path)
        return error(status, code)

    front.answer = refuse
    calls = [
        place.read,
        lambda: place.write(b"1"),
        lambda: locate(bucket, StorageSection()),
        place.files,
        place.open,
        lambda: list(place.walk(lambda name: False)),
    ]
    for call in calls:
        tries.clear()
        with pytest.raises(AccessError) as caught:
            call()
        told = str(caught.value)
        assert told.startswith(bucket) and "\n" not in told and len(tries) <= 2
        # A refused HEAD request, the first of open, has no code but its status.
        assert mend in told or (call == place.open and ("access refused" in told or "access denied" in told))


def test_a_prefix_that_may_only_be_read_is_reported(bucket: str, front: Proxy) -> None:
    front.answer = lambda request, serve: error(403, "AccessDenied") if request.command != "GET" else serve()
    place = locate(bucket, StorageSection())
    assert (place / "file").read() == b"content" and place.files() == ["file"]
    for write in ((place / "new").write, (place / "new").create):
        with pytest.raises(AccessError, match="/new: access denied; check the credentials and their policy"):
            write(b"1")


def test_objects_that_may_not_be_removed_are_reported(bucket: str, front: Proxy) -> None:
    place = locate(bucket, StorageSection())
    (place / "folder/a").write(b"1")
    body = b"<DeleteResult><Error><Key>folder/a</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    refusal = (200, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body)
    front.answer = lambda request, serve: refusal if request.command == "POST" else serve()
    with pytest.raises(AccessError, match="access denied"):
        (place / "folder").delete()


def test_an_answer_that_ends_in_its_middle_is_read_again(bucket: str, front: Proxy, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    place = locate(bucket, StorageSection()) / "large"
    place.write(content)
    cuts = iter([])

    def cut(request: BaseHTTPRequestHandler, serve: Serve) -> Answer:
        status, headers, body = serve()
        if request.command == "GET" and next(cuts, False):
            request.close_connection, body = True, body[: len(body) // 2]
        return status, headers, body

    front.answer = cut
    cuts = iter([True, True])
    assert place.read() == content
    cuts = iter([True, True])
    place.download(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["file"]
    cuts = iter([True] * 20)
    with pytest.raises(StorageError):
        place.download(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_stream_of_an_object_that_changes_is_not_a_mixture(bucket: str, front: Proxy) -> None:
    place = locate(bucket, StorageSection()) / "large"
    place.write(bytes(20 << 20))
    with place.open() as stream:
        assert stream.read(1 << 20) == bytes(1 << 20)
        place.write(b"1" * (20 << 20))
        with pytest.raises(StorageError):
            stream.read()


def test_large_contents_are_uploaded_in_parts_and_are_there_as_a_whole(
    bucket: str, front: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_objects, "PART", 5 << 20)
    content = bytes(12 << 20)
    (tmp_path / "file").write_bytes(content)
    place = locate(bucket, StorageSection())
    for write in (lambda: (place / "large").write(content), lambda: (place / "large").upload(tmp_path / "file")):
        front.answer = lambda request, serve: error(403, "AccessDenied") if "partNumber=3" in request.path else serve()
        with pytest.raises(AccessError):
            write()
        assert not (place / "large").exists()
        uploads = place.store.filesystem.call_s3("list_multipart_uploads", Bucket=place.path)
        assert not uploads.get("Uploads")
        front.answer = lambda request, serve: serve()
        write()
        assert (place / "large").read() == content
        (place / "large").delete()


def test_throttling_and_errors_of_the_service_are_tried_again(bucket: str, s3_url: str, front: Proxy) -> None:
    place = locate(bucket, StorageSection())
    faults = iter(["SlowDown", "InternalError", "SlowDown"])

    def throttle(request: BaseHTTPRequestHandler, serve: Serve) -> Answer:
        return error(503, code) if (code := next(faults, "")) else serve()

    front.answer = throttle
    assert (place / "file").read() == b"content" and next(faults, None) is None


def test_a_location_is_pickled_without_credentials(bucket: str, front: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "secret-word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret-word@127.0.0.1:1")
    place = locate(bucket, StorageSection(s3_region="eu-north-1")) / "file"
    assert place.read() == b"content"
    for value in (place, place.arrow_filesystem):
        pickled = pickle.dumps(value)
        assert b"secret-word" not in pickled and b"eu-north-1" in pickled
        assert str(front.server_address[1]).encode() in pickled
    with pickle.loads(pickle.dumps(place.arrow_filesystem)).open_input_file(place.path) as file:
        assert file.read() == b"content"


def _read_in(place: Location) -> bytes:
    return place.read()


def test_threads_spawned_and_forked_processes_use_a_location(bucket: str, s3_url: str) -> None:
    place = locate(bucket, StorageSection()) / "file"
    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(lambda _: place.read(), range(200))) == {b"content"}
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.load(sys.stdin.buffer).read())"
    spawned = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(place), capture_output=True, check=True)
    assert (spawned.stdout, spawned.stderr) == (b"content", b"")
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(writing, place.read())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"content"


def test_what_another_process_writes_and_removes_is_seen(bucket: str, s3: Callable[[str], str]) -> None:
    place = locate(bucket, StorageSection())
    assert place.files() == ["file"] and not (place / "other").exists() and (place / "file").exists()
    code = (
        "import sys; from medfocus.pipeline.config import StorageSection; from medfocus.pipeline.data.storage import"
        " locate; place = locate(sys.argv[1], StorageSection()); (place / 'other').write(b'1');"
        " (place / 'file').delete()"
    )
    ended = subprocess.run([sys.executable, "-c", code, bucket], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")  # nor does a session that is left open show
    assert place.files() == ["other"] and (place / "other").exists() and not (place / "file").exists()
    assert [entry.name for entry in place.walk(lambda name: False)] == ["other"]


def test_an_error_at_the_end_of_a_process_leaves_one_line(s3: Callable[[str], str]) -> None:
    code = (
        "from medfocus.pipeline.config import StorageSection; from medfocus.pipeline.data.storage import locate\n"
        "try:\n locate('s3://no-such-bucket-here', StorageSection())\nexcept Exception as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("s3://no-such-bucket-here: the bucket does not exist") and ended.stderr == ""


def test_a_local_run_imports_no_library_of_a_store() -> None:
    code = (
        "import sys, tempfile; from medfocus.pipeline.config import StorageSection; from medfocus.pipeline.data.storage"
        " import locate; place = locate(tempfile.mkdtemp(), StorageSection()) / 'x'; place.write(b'1'); place.read();"
        " print([name for name in ('fsspec', 's3fs', 'botocore', 'aiohttp', 'adlfs', 'gcsfs') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_a_service_that_answers_nothing_is_reported(bucket: str, front: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_connection, "_ATTEMPTS", 2)

    def hang_up(request: BaseHTTPRequestHandler, serve: Serve) -> Answer:
        request.connection.close()
        raise ConnectionResetError

    place = locate(bucket, StorageSection())
    front.handle_error = lambda *_: None  # type: ignore[method-assign]
    front.answer = hang_up
    with pytest.raises(ServiceError, match="the service does not answer; check"):
        (place / "file").read()
