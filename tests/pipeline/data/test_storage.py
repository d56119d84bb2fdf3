import json
import os
import pickle
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data import s3_connection
from medfocus.pipeline.data.local_tree import Kind
from medfocus.pipeline.data.storage import ServiceError, StorageError, locate
from tests import servers


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    make: Callable[[str], str] = request.getfixturevalue("s3")
    return make(f"bucket-{tmp_path.name.replace('_', '-').lower()[:40]}") + "/root"


def test_write_read_list_delete(root: str) -> None:
    place = locate(root, StorageSection())
    assert place.files() == [] and not place.exists()
    (place / "a" / "one.bin").write(b"\0\1")
    (place / "b.json").write_json({"x": [1]})
    assert (place / "a" / "one.bin").read() == b"\0\1"
    assert (place / "b.json").read_json() == {"x": [1]}
    assert place.files() == ["b.json"]
    assert place.files(recursive=True) == ["a/one.bin", "b.json"]
    assert place.files(".parquet", recursive=True) == []
    (place / "b.json").write(b"new")
    assert (place / "b.json").read() == b"new"
    (place / "b.json").delete()
    (place / "b.json").delete()
    (place / "a").delete()
    assert place.files(recursive=True) == []


def test_a_local_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    place = locate(str(tmp_path), StorageSection()) / "f"
    place.write(b"old")
    with pytest.raises(TypeError):
        place.write("text")  # type: ignore[arg-type]
    assert place.read() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_missing_file_is_named(root: str) -> None:
    with pytest.raises(StorageError) as caught:
        (locate(root, StorageSection()) / "absent").read()
    assert "absent" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_bucket_is_named(s3: Callable[[str], str]) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket-here/x: the bucket does not exist"):
        locate("s3://no-such-bucket-here/x", StorageSection()).write(b"1")
    with pytest.raises(StorageError, match="the bucket does not exist"):
        locate("s3://no-such-bucket-here/x", StorageSection()).files()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that find no server are tried twice only."""
    monkeypatch.setattr(s3_connection, "_ATTEMPTS", 2)


def test_a_dead_endpoint_is_reported(s3: Callable[[str], str], impatient: None) -> None:
    section = StorageSection(s3_endpoint=f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(ServiceError, match="the service does not answer"):
        locate("s3://bucket/x", section).read()


def test_wrong_credentials_are_reported(s3: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.s3({"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
        with pytest.raises(StorageError, match=r"AWS_ACCESS_KEY_ID|access denied") as caught:
            locate("s3://bucket/x", StorageSection()).read()
        assert "testing" not in str(caught.value)


@contextmanager
def enforcing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that checks signatures and policies; the environment holds the key of a user who may use S3."""
    with servers.s3() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        users = boto3.client("iam", region_name="us-east-1")
        users.create_user(UserName="reader")
        allowed = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        users.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(allowed))
        key = users.create_access_key(UserName="reader")["AccessKey"]
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="guarded")
        check = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(check).close()  # from here on it checks
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        yield


def test_right_credentials_serve_and_a_wrong_secret_is_reported(
    s3: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with enforcing(monkeypatch):
        place = locate("s3://guarded/file", StorageSection())
        place.write(b"1")
        assert place.read() == b"1"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        with pytest.raises(StorageError, match=r"AWS_SECRET_ACCESS_KEY|access denied") as caught:
            locate("s3://guarded/file", StorageSection()).read()
        assert "not-the-secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://AKIA:secret-word@bucket/x", "s3://secret-word@bucket"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError, match="holds no credentials") as caught:
        locate(uri, StorageSection())
    assert "secret-word" not in str(caught.value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text("abcXYZ09-_. é", min_size=1, max_size=12).filter(lambda name: name.strip(". ")), max_size=3),
    st.binary(max_size=300),
)
def test_any_name_and_content_round_trip(root: str, names: list[str], content: bytes) -> None:
    place = locate(root, StorageSection()) / uuid.uuid4().hex
    file = place
    for name in [*names, "file"]:
        file = file / name
    file.write(content)
    assert file.read() == content and file.exists() and not file.is_folder()
    assert place.files(recursive=True) == ["/".join([*names, "file"])]
    file.delete()
    assert not file.exists()


ODD_KEYS = ["//b.png", "/lead.png", "a///c.png", "a/./d.png", "a/../e.png"]
PLAIN_KEYS = ["a/f g+h%20i#j?.png", "a/\u00fc.png", "a/u\u0308.png", "a/k\\l.png", "a/m .png", "a/f/n.png", "a/f"]


def test_objects_of_any_key_are_walked_and_read(s3: Callable[[str], str]) -> None:
    place = locate(s3("odd-keys"), StorageSection())
    client = boto3.client("s3", region_name="us-east-1")
    keys = [*ODD_KEYS, *PLAIN_KEYS, "a/v?versionId=1.png"]
    for key in [*keys, "marker/", "a/marker/", ".git/x.png", "a/.hidden/y.png"]:
        client.put_object(Bucket="odd-keys", Key=key, Body=b"" if key.endswith("/") else key.encode())
    entries = {entry.name: entry for entry in place.walk(lambda part: part in (".git", ".hidden"))}
    kinds = {kind: {name for name, entry in entries.items() if entry.kind is kind} for kind in Kind}
    assert kinds[Kind.FILE] == set(keys) and kinds[Kind.SKIPPED] == {".git/x.png", "a/.hidden/y.png"}
    assert {entries[key].size for key in keys} == {len(key.encode()) for key in keys}
    assert all(entries[key].stamp == (place / key).stamp() for key in PLAIN_KEYS)
    for key in keys:
        assert (place / key).read() == key.encode() and (place / key).read(3) == key.encode()[:3]
        (place / f"{key}-2").write(b"new")
        assert (place / f"{key}-2").exists() and (place / f"{key}-2").open().read() == b"new"


@pytest.mark.parametrize("prefix", ["/lead", "a//b/", "../x", "a/./b"])
def test_a_prefix_with_odd_parts_is_used(s3: Callable[[str], str], prefix: str) -> None:
    place = locate(f"{s3(f'odd-prefix-{uuid.uuid4().hex}')}/{prefix}", StorageSection())
    assert place.files() == [] and not place.exists()
    (place / "one").write(b"1")
    (place / "below/two").write(b"2")
    assert place.files() == ["one"] and place.files(recursive=True) == ["below/two", "one"]
    assert place.exists() and place.is_folder() and (place / "one").read() == b"1"
    place.delete()
    assert place.files(recursive=True) == []


def test_local_names_that_are_not_utf8_are_read_and_have_a_uri_that_is(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 100%.png"
    with open(raw, "wb") as file:  # noqa: PTH123  a Path takes no bytes
        file.write(b"content")
    place = locate(str(tmp_path), StorageSection()) / "caf\udce9 100%.png"
    assert place.read() == b"content" and place.read(3) == b"con" and place.exists() and not place.is_folder()
    assert place.uri == f"file://{tmp_path}/caf%E9%20100%25.png"
    assert unquote_to_bytes(place.uri.removeprefix("file://")) == raw
    assert (locate(str(tmp_path), StorageSection()) / "100%.png").uri == f"{tmp_path}/100%.png"


def test_a_path_of_a_call_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"^file:///.*/caf%E9: the path is not UTF-8; rename it, or give a link"):
        locate(f"{tmp_path}/caf\udce9", StorageSection())


@pytest.mark.parametrize("uri", ["ftp://bucket/x", "s3://", "http://host/x", "s3:///bucket/x", "gs://", "://x"])
def test_other_schemes_are_refused_with_the_extras_of_others(uri: str) -> None:
    with pytest.raises(StorageError, match=r"not a local path or s3://.*medfocus\[gcs\].*medfocus\[azure\]"):
        locate(uri, StorageSection())


@pytest.fixture
def unproxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_s3_goes_through_the_proxy_of_the_environment(
    s3: Callable[[str], str],
    s3_url: str,
    unproxied: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    bucket, log = s3(f"proxied-{uuid.uuid4().hex}"), tmp_path / "requests"
    with servers.proxy(log, "doctor:p@ss word") as address:
        monkeypatch.setenv(name, f"http://doctor:p%40ss%20word@{address}")
        place = locate(f"{bucket}/some", StorageSection()) / "file"
        place.write(b"content" * 1000)
        assert pickle.loads(pickle.dumps(place)).read() == b"content" * 1000  # as it arrives at a worker
        requests = log.read_text().splitlines()
        assert {"PUT", "GET"} <= {line.split()[0] for line in requests}
        assert {line.split()[1] for line in requests} == {urlsplit(s3_url).netloc}
        for spared in ("127.0.0.1", f"other,{urlsplit(s3_url).netloc}", "*", ".0.0.1"):
            monkeypatch.setenv("NO_PROXY", spared)
            assert (locate(f"{bucket}/some", StorageSection()) / "file").exists()
        assert log.read_text().splitlines() == requests
        monkeypatch.setenv("NO_PROXY", "other,10.0.0.1")
        assert (locate(f"{bucket}/some", StorageSection()) / "file").exists()
        assert len(log.read_text().splitlines()) > len(requests)


def test_a_proxy_of_the_other_scheme_is_not_used(
    s3: Callable[[str], str], unproxied: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3("other-scheme")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{servers.free_port()}")
    assert locate(bucket, StorageSection()).exists()


@pytest.mark.parametrize("address", ["socks5://doctor:secret-word@127.0.0.1:1080", "http://doctor:secret-word@h:x"])
def test_a_proxy_that_cannot_be_used_is_reported_without_its_password(
    s3: Callable[[str], str], unproxied: None, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    bucket = s3("odd-proxy")
    monkeypatch.setenv("HTTP_PROXY", address)
    with pytest.raises(StorageError, match="NO_PROXY") as caught:
        locate(bucket, StorageSection())
    assert "secret-word" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_proxy_that_does_not_answer_is_reported_without_its_password(
    s3: Callable[[str], str], unproxied: None, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3("dead-proxy")
    monkeypatch.setenv("HTTP_PROXY", f"http://doctor:secret-word@127.0.0.1:{servers.free_port()}")
    with pytest.raises(StorageError, match="and the proxy") as caught:
        locate(bucket, StorageSection())
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_a_listing_tells_what_has_changed(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    uris = {"local": lambda: str(tmp_path), "memory": lambda: f"memory://{uuid.uuid4().hex}/x"}
    uris["s3"] = lambda: request.getfixturevalue("s3")("stamps")
    place = locate(uris[kind](), StorageSection())

    def stamps() -> dict[str, str]:
        return {entry.name: entry.stamp for entry in place.walk(lambda name: False)}

    (place / "a/one").write(b"1")
    (place / "two").write(b"2")
    before = stamps()
    assert before == stamps() and len(before) == 2
    (place / "two").write(b"3")
    assert stamps()["a/one"] == before["a/one"] and stamps()["two"] != before["two"]
