"""What ``pack`` makes of folders as people have them."""

import io
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from PIL import Image

from medfocus.pipeline.commands import evaluate, pack, quarantine
from medfocus.pipeline.config import Config, StorageSection, load_config
from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import AccessError, Location, ServiceError, locate
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.ingest.shard_writer import ImageFile, write_shard
from medfocus.pipeline.ingest.source import Source, find_images
from medfocus.pipeline.labels.folders import folder_classes
from tests.conftest import png
from tests.pipeline.evaluation.archive import draw_rows, write_predictions

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)
PNG = png(PIXELS)


def image(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, kind)
    return content.getvalue()


def write(path: Path, content: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def place(path: Path | str) -> Location:
    return locate(str(path), StorageSection())


def ids(source: Source) -> list[str]:
    return [found.image_id for found in source.images]


def errors(source: Source) -> dict[str, str]:
    return {refusal.image_id: refusal.error for refusal in source.refused}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "in"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(None, [f"work={tmp_path_factory.mktemp('work')}", "pack.rows_per_shard=4"])


def test_images_are_found_by_their_bytes(top: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.PNG", "c", "d.dat", "e.Smith", "x/f.jpe", "x/g.jfif", "x/h.dib", "x/i.mpo", "x/j.tif"):
        write(top / name)
    write(top / "k.jpg", b"no image, but its name says so")
    large = io.BytesIO()
    Image.fromarray(np.zeros((300, 300), np.uint8)).save(large, "TIFF")  # its header is behind its pixels
    write(top / "l.scan", large.getvalue())
    write(top / "m", image("JPEG")), write(top / "n", image("BMP")), write(top / "o", image("WEBP"))
    for name in ("p.txt", "q.csv", "r.Jones", "s", "t.txt"):
        write(top / name, b"BM is how this text begins\n")
    write(top / "u.txt", b"")
    source = find_images(place(top))
    assert ids(source) == [
        *("a.png", "b.PNG", "c", "d.dat", "e.Smith", "k.jpg", "l.scan", "m", "n", "o"),
        *("x/f.jpe", "x/g.jfif", "x/h.dib", "x/i.mpo", "x/j.tif"),
    ]
    assert not source.refused
    source.log()
    assert "6 files are no images by their bytes" in caplog.text and ".txt 3" in caplog.text
    assert "Jones" not in caplog.text


def test_what_systems_and_tools_leave_behind_is_no_class(top: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("__MACOSX", ".Trash-1000", ".thumbnails", "$RECYCLE.BIN", ".ipynb_checkpoints", "@eaDir", ".git"):
        write(top / folder / "deep" / "1.png")
        write(top / "cat" / folder / "1.png")
    for folder in ("lost+found", "System Volume Information", "__macosx", ".Smith"):
        write(top / folder / "1.png")
    for name in ("._1.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        write(top / "cat" / name)
    write(top / "cat" / "1.png"), write(top / "dog" / "..2.png".lstrip("."))
    source = find_images(place(top))
    assert ids(source) == ["cat/1.png", "dog/2.png"] and not source.refused and not source.left_out
    assert source.junk.total() == 22
    with caplog.at_level(logging.INFO):
        source.log()
    assert "22 files and folders of systems and tools are left out" in caplog.text and "Smith" not in caplog.text


def test_names_of_any_bytes_have_an_id_of_their_own(top: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    top.mkdir()
    names = [b"caf\xe9.png", b"caf\xe8.png", b"100%.png", nfc.encode(), nfd.encode(), b"new\nline.png"]
    names += [unicodedata.normalize("NFD", "ü.png").encode()]
    for name in names:
        with open(os.fsencode(top) + b"/" + name, "wb") as file:  # noqa: PTH123  a Path takes no bytes
            file.write(PNG)
    source = find_images(place(top))
    found = {image.path: image.image_id for image in source.images}
    assert found == {
        b"caf\xe9.png": "caf%E9.png",
        b"caf\xe8.png": "caf%E8.png",
        b"100%.png": "100%.png",
        nfc.encode(): nfc,
        nfd.encode(): "e%CC%81.png",
        b"new\nline.png": "new\nline.png",
        unicodedata.normalize("NFD", "ü.png").encode(): unicodedata.normalize("NFC", "ü.png"),
    }
    for raw, name in found.items():
        assert raw == unquote_to_bytes(name) or unicodedata.normalize("NFC", raw.decode()) == name


def test_a_name_that_is_taken_goes_to_quarantine(top: Path) -> None:
    write(top / "caf%E9.png")
    with open(os.fsencode(top) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123
        file.write(PNG)
    source = find_images(place(top))
    assert ids(source) == ["caf%E9.png"] and errors(source) == {"caf%E9.png": "DuplicateId"}
    assert len({refusal.source_uri for refusal in source.refused} | {str(top / "caf%E9.png")}) == 2


def test_a_file_that_cannot_be_used_does_not_touch_the_others(top: Path, plain_user: None) -> None:
    write(top / "ok.png")
    write(top / "closed" / "1.png")
    (top / "closed").chmod(0)
    write(top / "unreadable").chmod(0)
    write(top / "empty.png", b"")
    (top / "broken.png").symlink_to("nothing")
    os.mkfifo(top / "pipe.png")
    (top / "loop").symlink_to(".")
    try:
        source = find_images(place(top))
    finally:
        (top / "closed").chmod(0o755)
    assert ids(source) == ["ok.png"] and source.repeated == 1
    assert errors(source) == {
        "closed/": "Unreadable",
        "unreadable": "Unreadable",
        "empty.png": "EmptyImage",
        "broken.png": "BrokenLink",
        "pipe.png": "NotAFile",
    }
    assert all(str(top) not in refusal.message and "\n" not in refusal.message for refusal in source.refused)


def shard(top: Path, *names: str) -> dict[str, Any]:
    images = [vars(ImageFile(name, name.encode(), 1, "cat")) for name in names]
    return write_shard({"name": "shard.parquet", "images": images}, place(top), place(top.parent / "out"))


def test_a_file_that_cannot_be_read_is_left_out_of_its_shard(top: Path, plain_user: None) -> None:
    write(top / "ok.png")
    write(top / "closed.png").chmod(0)
    write(top / "emptied.png", b"")
    (top / "folder.png").mkdir()
    written = shard(top, "ok.png", "closed.png", "emptied.png", "folder.png", "vanished.png")
    refused = {row["image_id"]: row["error"] for row in json.loads(written["refused"])}
    assert refused == {
        "closed.png": "Unreadable",
        "emptied.png": "EmptyImage",
        "folder.png": "Unreadable",
        "vanished.png": "Vanished",
    }
    assert (written["rows"], written["labelled"]) == (1, 1)
    assert [row["image_id"] for row in rows_of(top.parent / "out")] == ["ok.png"]


def test_a_shard_of_nothing_is_not_written(top: Path) -> None:
    top.mkdir()
    assert shard(top, "vanished.png")["rows"] == 0 and not (top.parent / "out").exists()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject"), AccessError),
        (EndpointConnectionError(endpoint_url="http://storage"), ServiceError),
    ],
)
def test_storage_that_serves_nothing_ends_the_run(
    top: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(kind):
        shard(top, "a.png")


def test_a_transient_error_is_tried_again_and_a_permanent_one_is_not(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(top / "a.png"), write(top / "b.png")
    faults: Iterator[OSError] = iter([OSError(5, "Input/output error")] * 4)
    real = open

    def flaky(path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if str(path).endswith("a.png'") and (fault := next(faults, None)):
            raise fault
        return real(path, mode, *rest, **named)

    monkeypatch.setattr("builtins.open", flaky)
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    written = shard(top, "a.png", "b.png")
    assert written["rows"] == 1 and '"Unreadable"' in written["refused"] and pauses == [1, 5, 15]
    faults = iter([OSError(5, "Input/output error")] * 3)
    assert shard(top, "a.png", "b.png")["rows"] == 2 and pauses == [1, 5, 15] * 2
    faults = iter([PermissionError(13, "Permission denied")])
    assert shard(top, "a.png", "b.png")["rows"] == 1 and pauses == [1, 5, 15] * 2


def odd_folder(top: Path) -> None:
    """A folder with something odd of every kind, and eight images."""
    for index in range(3):
        write(top / "benign" / f"{index}.png"), write(top / "malignant " / f"{index}")
    write(top / "__MACOSX" / "benign" / "._0.png"), write(top / ".git" / "0.png"), write(top / "benign" / "Thumbs.db")
    write(top / "benign" / "report.txt", b"Smith")
    write(top / "benign" / "empty.png", b"")
    (top / "loop").symlink_to(".")
    (top / "benign" / "gone.png").symlink_to("nothing")
    os.mkfifo(top / "benign" / "pipe.png")
    with open(os.fsencode(top) + b"/benign/caf\xe9.png", "wb") as file:  # noqa: PTH123
        file.write(PNG)
    write(top / "benign" / unicodedata.normalize("NFD", "ü.png"))


@pytest.mark.parametrize("labelled", ["folders", "file"])
def test_a_folder_with_everything_odd_is_packed(
    top: Path, tmp_path: Path, config: Config, ray_session: None, labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd_folder(top)
    labels = None
    if labelled == "file":
        lines = [f"benign\\{index}.PNG;benign" for index in range(3)] + [
            f"./malignant /{index};malignant" for index in "012"
        ]
        lines += ["benign/café.png;benign", "benign/ü;benign ", ";", "benign/empty.png;benign", "benign/0.PNG;benign"]
        labels = str(write(tmp_path / "labels.csv", "\r\n".join(["sep=;", " File ;LABEL", *lines]).encode("utf-16")))
    out = tmp_path / "out"
    result = pack.run(config, str(top), str(out), labels)
    rows = {row["image_id"]: row for row in rows_of(out)}
    classes = {name: row["label"] for name, row in rows.items()}
    assert classes == {
        **{f"benign/{index}.png": "benign" for index in range(3)},
        **{f"malignant /{index}": "malignant" for index in range(3)},
        "benign/caf%E9.png": "benign",
        "benign/ü.png": "benign",
    }
    assert rows["benign/caf%E9.png"]["source_uri"] == f"file://{top}/benign/caf%E9.png"
    assert (result["rows"], result["shards"], result["labelled"], result["quarantined"]) == (8, 2, 8, 3)
    refused = rows_of(out / "quarantine")
    records.check_record(pq.read_schema(out / "quarantine" / "pack.parquet"), records.QUARANTINE, "quarantine")
    assert {(row["image_id"], row["stage"], row["error"]) for row in refused} == {
        ("benign/empty.png", "pack", "EmptyImage"),
        ("benign/gone.png", "pack", "BrokenLink"),
        ("benign/pipe.png", "pack", "NotAFile"),
    }
    assert quarantine.run(config, str(out))["quarantined"] == 3
    assert "EmptyImage" in capsys.readouterr().out


def test_an_earlier_call_that_did_not_finish_leaves_no_quarantine(
    top: Path, tmp_path: Path, config: Config, ray_session: None
) -> None:
    write(top / "a.png"), write(top / "b.png", b"")
    out = tmp_path / "out"
    assert pack.run(config, str(top), str(out), None)["quarantined"] == 1
    (out / "manifest.json").unlink()
    write(top / "b.png")
    assert pack.run(config, str(top), str(out), None)["quarantined"] == 0
    assert not rows_of(out / "quarantine") and len(rows_of(out)) == 2


def test_nothing_to_pack_is_told(
    top: Path, tmp_path: Path, config: Config, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(top / "a.png", b"")
    with pytest.raises(UsageError, match=r"holds no image that can be packed \(EmptyImage 1\)"):
        pack.run(config, str(top), str(tmp_path / "out"), None)
    write(top / "b.png")
    real = pack.find_images

    def vanishing(origin: Location) -> Source:
        source = real(origin)
        (top / "b.png").unlink()
        return source

    monkeypatch.setattr(pack, "find_images", vanishing)
    with pytest.raises(MedFocusError, match="none of 1 images can be read; medfocus quarantine"):
        pack.run(config, str(top), str(tmp_path / "out"), None)
    assert {row["error"] for row in rows_of(tmp_path / "out" / "quarantine")} == {"EmptyImage", "Vanished"}


def test_objects_of_any_key_are_packed(s3: Callable[[str], str], config: Config) -> None:
    bucket, client = s3("any-key"), boto3.client("s3", region_name="us-east-1")
    good = ["in/a/x.png", "in/a b+c%20#?.png", "in/ü/y", "in/u\u0308.png", "in/a.png/z.png", "in/a.png"]
    keys = [*good, "in//x.png", "in/./x.png", "in/a//x", "in/a/../y.png"]
    for key in keys:
        client.put_object(Bucket="any-key", Key=key, Body=PNG)
    for key in ("in/a/", "in/marker/", "in/__MACOSX/x.png", "in/notes.txt"):
        client.put_object(Bucket="any-key", Key=key, Body=b"")
    origin, out = place(f"{bucket}/in/"), place(f"{bucket}/out")
    source = find_images(origin)
    assert not source.refused
    images = [vars(ImageFile(found.image_id, found.path, found.size)) for found in source.images]
    images.append(vars(ImageFile("gone.png", b"gone.png", 1)))
    written = write_shard({"name": "shard.parquet", "images": images}, origin, out)
    assert written["rows"] == len(keys) and '"Vanished"' in written["refused"]
    table = pq.read_table(f"{out.path}/shard.parquet", filesystem=out.arrow_filesystem)
    assert set(table["source_uri"].to_pylist()) == {f"{bucket}/{key}" for key in keys}
    classes = dict(
        zip(table["image_id"].to_pylist(), folder_classes(table["image_id"].to_pylist()).classes, strict=True)
    )
    assert {classes[name] for name in ("/x.png", "./x.png", "a.png", "ü/y")} == {None, "ü"} and classes["a//x"] == "a"


@pytest.mark.parametrize("columns", ["file", "path", "image_id", "both", "other id", "other file"])
def test_pack_and_evaluate_read_the_same_labels(
    top: Path, tmp_path: Path, config: Config, ray_session: None, columns: str
) -> None:
    predicted = draw_rows(12)
    for row in predicted:
        write(top / row["image_id"])
    given = {
        "file": "File;x;label",
        "path": "File;x;label",
        "image_id": "IMAGE_ID;x;label",
        "both": "image_id;file;label",
        "other id": "image_id;file;label",
        "other file": "file;image_id;label",
    }[columns]
    first = {"file": "{}", "image_id": "{}", "path": f"{top}/{{}}"}
    lines = [
        f"{first.get(columns, str(number)).format(row['image_id'])};{row['image_id']};{row['truth']}"
        for number, row in enumerate(predicted)
    ]
    labels = write(tmp_path / "labels.csv", ("sep=;\r\n" + "\r\n".join([given, *lines])).encode("utf-16"))
    pack.run(config, str(top), str(tmp_path / "shards"), str(labels))
    write_predictions(str(tmp_path / "out"), [predicted])
    settings = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"resamples": 10})})
    by_file, by_shards = (
        evaluate.run(settings, str(tmp_path / "out"), str(given)) for given in (labels, tmp_path / "shards")
    )
    assert by_file["rows"] == 12 and by_file["unlabelled"] == by_file["unpredicted"] == 0
    assert by_file["metrics"] == by_shards["metrics"]


def test_label_files_of_others_are_packed(label_files: Path, tmp_path: Path, config: Config, ray_session: None) -> None:
    for path in sorted(label_files.glob("*.csv")):
        out = tmp_path / path.stem
        result = pack.run(config, str(label_files / "in"), str(out), str(path))
        assert (result["rows"], result["labelled"]) == (4, 4), path.name
        rows = sorted((row["image_id"], row["label"], row["patient_id"]) for row in rows_of(out))
        assert rows == [(f"{i}.png", ("malignant", "benign")[i % 2], f"P{i}") for i in range(4)], path.name
