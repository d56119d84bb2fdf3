"""Stores other than S3: their packages and their options; Azure on its emulator, where it is installed."""

import json
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.cloud_objects import AzureObjects, GoogleObjects
from medfocus.pipeline.data.object_stores import StoreAddress
from medfocus.pipeline.data.schemes import object_store
from medfocus.pipeline.data.storage import AccessError, Location, StorageError, locate
from tests import servers

# The account that the emulator always has. Its key is published by Microsoft and no secret.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
NONE = {"endpoint": "http://s3", "region": "eu", "anonymous": False}


def test_a_uri_names_a_store_and_a_path() -> None:
    assert object_store("gs://bucket/a/b/", **NONE) == (GoogleObjects(StoreAddress("gs")), "bucket/a/b")
    azure = (AzureObjects(StoreAddress("az", account=None)), "box/a")
    assert object_store("az://box/a", **NONE) == azure
    named = AzureObjects(StoreAddress("abfs", account="hospital"))
    assert object_store("abfs://box@hospital.dfs.core.windows.net/a", **NONE) == (named, "box/a")
    address = object_store("s3://bucket/x", **NONE)[0].address
    assert address == StoreAddress("s3", "http://s3", "eu")


@pytest.mark.parametrize("uri", ["az://user:secret-word@box/a", "abfs://secret-word@box/a", "gs://secret-word@bucket"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError, match="holds no credentials") as caught:
        locate(uri, StorageSection())
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [("gs://bucket/x", "gcsfs", "gcs"), ("az://box/x", "adlfs", "azure"), ("abfs://box/x", "adlfs", "azure")],
)
def test_a_missing_package_is_told_with_the_extra_that_installs_it(uri: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None; from medfocus.pipeline.config import StorageSection; from"
        f" medfocus.pipeline.data.storage import locate; locate('{uri}', StorageSection()).read()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = ended.stderr.strip().splitlines()[-1]
    scheme = uri.partition("://")[0]
    assert ended.returncode and told.endswith(
        f"StorageError: {scheme}:// needs {package}; run pip install 'medfocus[{extra}]'"
    )


def test_azure_and_google_are_connected_to_without_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("adlfs", reason="the extra azure is not installed")
    pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", _KEY)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    azure = StoreAddress("abfs", account="hospital").filesystem
    assert azure.account_name == "hospital" and azure.account_key == _KEY and not azure.dircache.use_listings_cache
    assert StoreAddress("abfs", account="hospital").filesystem is azure
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", _KEY[::-1])
    assert StoreAddress("abfs", account="hospital").filesystem is not azure
    google = StoreAddress("gs", anonymous=True).filesystem
    assert not google.dircache.use_listings_cache and google.credentials.token == "anon"


def test_objects_in_memory_are_a_store() -> None:
    place = locate(f"memory://{uuid.uuid4().hex}/root", StorageSection())
    assert place.files() == [] and not place.exists()
    (place / "a/one").write(b"1")
    (place / "two").write(b"22")
    assert place.files() == ["two"] and place.files(recursive=True) == ["a/one", "two"] and place.is_folder()
    assert {(entry.name, entry.size) for entry in place.walk(lambda name: False)} == {("a/one", 1), ("two", 2)}
    assert (place / "two").read(1) == b"2" and (place / "two").open().read() == b"22"
    pq.write_table(pa.table({"x": [1, 2]}), f"{place.path}/t.parquet", filesystem=place.arrow_filesystem)
    assert pq.read_table((place / "t.parquet").path, filesystem=place.arrow_filesystem)["x"].to_pylist() == [1, 2]
    place.delete()
    assert place.files(recursive=True) == []


class GoogleBucket(BaseHTTPRequestHandler):
    """Answers as a bucket of Google Cloud Storage: its JSON API, as far as objects are read and written."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, tuple[int, bytes]]] = {}
    lock = threading.Lock()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query, key = parse_qs(url.query), unquote(url.path.partition("/o/")[2])
        if not key:
            prefix = query.get("prefix", [""])[0]
            self._answer(
                200, {"items": [self._described(name) for name in sorted(self.objects) if name.startswith(prefix)]}
            )
        elif key not in self.objects:
            self._answer(404, {})
        else:
            self._answer(200, self.objects[key][1] if query.get("alt") == ["media"] else self._described(key))

    def do_POST(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if query["uploadType"] == ["multipart"]:
            _, described, content, _ = body.split(b"--==0==")
            key, body = json.loads(described.split(b"\n\n", 1)[1])["name"], content.split(b"\n\n", 1)[1][:-1]
        else:
            key = query["name"][0]
        with self.lock:
            generation = self.objects.get(key, (0, b""))[0]
            if int(query.get("ifGenerationMatch", [generation])[0]) != generation:
                self._answer(412, {})
                return
            self.objects[key] = generation + 1, body
        self._answer(200, self._described(key))

    def _described(self, key: str) -> dict[str, str]:
        generation, content = self.objects[key]
        return {"kind": "storage#object", "name": key, "size": str(len(content)), "generation": str(generation)}

    def _answer(self, status: int, content: dict | bytes) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def test_google_creates_once_and_replaces_a_version_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in: no emulator that can be installed here heeds the conditions."""
    pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), GoogleBucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        place = locate("gs://bucket/root", StorageSection(anonymous=True))
        lease, names = place / "lease", [str(number).encode() for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lease.create, names)) == 1
            content, version = lease.read_version()
            assert content in names
            assert sum(pool.map(lambda name: lease.replace(b"new " + name, version), names)) == 1
        assert lease.read().startswith(b"new ") and place.files() == ["lease"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of Azure's emulator."""
    program = shutil.which("azurite")
    if program is None:
        pytest.skip("azurite, the emulator of Azure's storage, is not on the PATH; npm install -g azurite")
    port = servers.free_port()
    command = [program, "--silent", "--inMemoryPersistence", "--skipApiVersionCheck"]
    for service, number in (("blob", port), ("queue", servers.free_port()), ("table", servers.free_port())):
        command += [f"--{service}Port", str(number)]
    process = subprocess.Popen(command, cwd=tmp_path_factory.mktemp("azurite"))
    url = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    try:
        deadline = time.monotonic() + 60
        while not servers._answers(url):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};BlobEndpoint={url};"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def container(azurite: str, monkeypatch: pytest.MonkeyPatch) -> Location:
    from azure.storage.blob import BlobServiceClient

    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite)
    name = f"box-{uuid.uuid4().hex}"
    BlobServiceClient.from_connection_string(azurite).create_container(name)
    return locate(f"az://{name}/root", StorageSection())


def test_azure_reads_writes_lists_and_deletes(container: Location, tmp_path: Path) -> None:
    assert container.files() == [] and not container.exists()
    (container / "a/one").write(b"1")
    (container / "two").write(b"22")
    (container / "b c+ü.png").write(b"")
    assert container.files() == ["b c+ü.png", "two"] and container.files("one", recursive=True) == ["a/one"]
    assert container.is_folder() and (container / "two").exists() and not (container / "two").is_folder()
    entries = {entry.name: entry.size for entry in container.walk(lambda name: False)}
    assert entries == {"a/one": 1, "two": 2, "b c+ü.png": 0}
    assert (container / "two").read(1) == b"2" and (container / "b c+ü.png").read(3) == b""
    (container / "two").download(tmp_path / "two")
    (container / "three").upload(tmp_path / "two")
    assert (container / "three").open().read() == b"22" and (container / "three").stamp()
    table, filesystem = pa.table({"x": [1, 2]}), container.arrow_filesystem
    pq.write_table(table, f"{container.path}/t.parquet", filesystem=filesystem)
    assert pq.read_table(f"{container.path}/t.parquet", filesystem=filesystem) == table
    with pytest.raises(StorageError, match="no such file"):
        (container / "absent").read()
    container.delete()
    assert container.files(recursive=True) == [] and not container.exists()


def test_azure_creates_once_and_replaces_a_version_once(container: Location) -> None:
    lease = container / "lease"
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lease.create, [str(number).encode() for number in range(16)])) == 1
        version = lease.read_version()[1]
        writers = [str(number).encode() for number in range(16)]
        assert sum(pool.map(lambda content: lease.replace(content, version), writers)) == 1
    lease.delete()
    assert not lease.replace(b"late", version) and not lease.exists()


def test_a_missing_container_and_wrong_keys_of_azure_are_reported(
    azurite: str, container: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"the bucket does not exist|no such file"):
        locate("az://no-such-box/x", StorageSection()).write(b"1")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.replace(_KEY, _KEY[:-4] + "AA=="))
    with pytest.raises(AccessError) as caught:
        locate(container.uri, StorageSection()).write(b"1")
    assert "\n" not in str(caught.value)
