"""What a task makes of a portion: shards of bounded size, and an index of what became of each item."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.data import records
from medfocus.pipeline.data.index import PACKED, read_portion, read_portions
from medfocus.pipeline.data.storage import AccessError, Location, ServiceError
from medfocus.pipeline.ingest.catalog import Catalog
from medfocus.pipeline.ingest.items import DICOM, UNKNOWN, Item, Naming
from medfocus.pipeline.ingest.portion import Packer, Portion, as_row, pack_portion, packer_of
from medfocus.pipeline.ingest.stream import portions_of
from medfocus.pipeline.labels.folders import folder_classes
from medfocus.stages.likeness import perceptual_hash, pixels_digest
from tests.pipeline.ingest.files import (
    BY_PATH,
    BY_PSEUDONYM,
    ct,
    ct_samples,
    errors,
    find,
    pack_here,
    picture,
    pixels,
    place,
    rows_of,
    tar_gz,
    write,
    write_each,
    zipped,
)

pytestmark = pytest.mark.usefixtures("without_isolation")


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import what is imported at its first use: the plain user of a test may not read it."""
    perceptual_hash(pixels(0))


def packer(origin: Location, target: Location, naming: Naming = BY_PATH, *settings: str) -> Packer:
    return packer_of(origin, target, naming, load_config(None, ["burned_in.ocr=never", *settings]))


def item(name: str, **fields: Any) -> Item:
    defaults = {"item": name, "file": name, "member": "", "kind": UNKNOWN, "size": 1, "stamp": "1", "ids": (None,) * 5}
    return Item(**defaults | fields)


def pack(top: Path, items: list[Item], *settings: str) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Pack items; returns the totals, and the index by item."""
    out, portion = place(top.parent / "out"), Portion(tuple(items))
    totals = packer(place(top), out, BY_PATH, *settings).pack(portion)
    return totals, {row["item"]: row for row in read_portion(out, portion.id).rows.to_pylist()}


def outcomes(entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["outcome"] for name, row in entries.items()}


def test_a_file_that_cannot_be_read_is_left_out_of_its_shard(
    top: Path, plain_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    write(top / "ok.png")
    write(top / "closed.png").chmod(0)
    write(top / "emptied.png", b"")
    (top / "folder.png").mkdir()
    names = ("ok.png", "closed.png", "emptied.png", "folder.png", "vanished.png")
    totals, entries = pack(top, [item(name, label="cat") for name in names])
    assert outcomes(entries) == {
        "ok.png": PACKED,
        "closed.png": "Unreadable",
        "emptied.png": "EmptyImage",
        "folder.png": "Unreadable",
        "vanished.png": "Vanished",
    }
    assert totals == {"items": 5, "rows": 1, "refused": 4, "not_looked_at": 1}
    assert all(str(top) not in (row["message"] or "") for row in entries.values())
    (row,) = rows_of(top.parent / "out")
    assert (row["image_id"], row["label"], row["source_uri"]) == ("ok.png", "cat", f"{top}/ok.png")


def test_a_shard_of_nothing_is_not_written_but_its_portion_is(top: Path) -> None:
    top.mkdir()
    totals, entries = pack(top, [item("vanished.png")])
    assert totals["rows"] == 0 and outcomes(entries) == {"vanished.png": "Vanished"}
    assert not list((top.parent / "out").glob("*.parquet"))


def test_the_index_is_written_last(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_each(top, {f"{seed}.png": picture(seed) for seed in range(3)})
    written: list[str] = []
    real = Location.write

    def noting(self: Location, content: bytes) -> None:
        written.append(self.path)
        real(self, content)

    monkeypatch.setattr(Location, "write", noting)
    pack(top, [item(f"{seed}.png") for seed in range(3)], "pack.rows_per_shard=2")
    assert [Path(path).parent.name for path in written] == ["out", "out", "index"]


@pytest.mark.parametrize("bound", ["pack.rows_per_shard=3", "pack.bytes_per_shard=1100"])
def test_shards_are_bounded_by_rows_and_by_bytes(top: Path, bound: str) -> None:
    write_each(top, {f"{seed}.png": picture(seed) for seed in range(8)})
    pack(top, [item(f"{seed}.png") for seed in range(8)], bound)
    out = top.parent / "out"
    shards = [pq.read_table(file).to_pylist() for file in sorted(out.glob("*.parquet"))]
    assert [row["image_id"] for rows in shards for row in rows] == [f"{seed}.png" for seed in range(8)]
    if "rows" in bound:
        assert [len(rows) for rows in shards] == [3, 3, 2]
    else:
        assert all(sum(len(row["image"]) for row in rows) <= 1100 for rows in shards) and 1 < len(shards) < 8
    (portion,) = read_portions(place(out))
    for entry in portion.shards:
        content = (out / entry.name).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        records.check_record(pq.read_schema(out / entry.name), records.SHARD, entry.name)
    for row in portion.rows.to_pylist():
        assert pq.read_table(out / row["shard"])["image_id"][row["row"]].as_py() == row["image_id"] == row["item"]


def test_the_same_portion_makes_the_same_files(top: Path) -> None:
    write_each(top, {f"{seed}.png": picture(seed) for seed in range(5)} | {"z.dcm": ct(ct_samples(1))})
    items = [*(item(f"{seed}.png") for seed in range(5)), item("z.dcm", kind=DICOM)]
    pack(top, items)
    before = {file.name: file.read_bytes() for file in (top.parent / "out").glob("*.parquet")}
    pack(top, items)
    assert {file.name: file.read_bytes() for file in (top.parent / "out").glob("*.parquet")} == before
    other = [replace(items[0], stamp="2"), *items[1:]]
    assert Portion(tuple(items)).id != Portion(tuple(other)).id != Portion(tuple(other[1:])).id


def test_what_has_not_changed_is_not_written_again(top: Path) -> None:
    write_each(top, {"same.png": picture(1), "other.png": picture(2)})
    digests = (pixels_digest(pixels(1)),)
    totals, entries = pack(top, [item(name, revision=1, digests=digests) for name in ("same.png", "other.png")])
    assert outcomes(entries) == {"same.png": "unchanged", "other.png": PACKED}
    assert totals == {"items": 2, "rows": 1, "refused": 0, "not_looked_at": 2}
    assert [row["image_id"] for row in rows_of(top.parent / "out")] == ["other.png~1"]


def test_members_of_archives_are_read_in_one_pass(top: Path) -> None:
    members = {f"{seed}.png": picture(seed) for seed in range(3)}
    write_each(top, {"a.zip": zipped(members), "b.tar.gz": tar_gz(members)})
    items = [
        item(f"{file}/{member}", file=file, member=member, container=file)
        for file in ("a.zip", "b.tar.gz")
        for member in ("2.png", "0.png", "gone.png")
    ]
    _, entries = pack(top, items)
    assert outcomes(entries) == {
        **{f"{file}/{seed}.png": PACKED for file in ("a.zip", "b.tar.gz") for seed in (0, 2)},
        **{f"{file}/gone.png": "Missing" for file in ("a.zip", "b.tar.gz")},
        **dict.fromkeys(("a.zip", "b.tar.gz"), "archive"),
    }
    digests = {row["image_id"]: row["pixels_sha256"] for row in rows_of(top.parent / "out")}
    assert digests == {row.item: pixels_digest(pixels(int(row.member[0]))) for row in items if row.member[0] != "g"}


def test_days_in_the_index_can_be_read_with_the_key_alone(top: Path) -> None:
    write(top / "a")
    _, entries = pack(top, [item("a", patient="p", first_day=43_000, ids=("s", "r", "i", "n", 43_007))])
    row = entries["a"]
    assert not {43_000, 43_007} & set(row.values())
    assert BY_PATH.pseudonyms.unmask_day("p", row["study_date"]) == 43_007
    assert BY_PATH.pseudonyms.unmask_day("p", row["first_day"]) == 43_000


def test_a_portion_travels_as_json(top: Path) -> None:
    write(top / "a.png", picture(1))
    name = "caf\udce9.png"
    write(top / name, picture(2))
    portion = Portion((item("a.png", digests=("d",), ids=("s", None, "i", "n", 5)), item("caf%E9.png", file=name)))
    row = json.loads(json.dumps(as_row(portion)))
    done = pack_portion(row, packer(place(top), place(top.parent / "out")))
    assert done["rows"] == 2
    assert (top.parent / "out" / "index" / f"portion-{portion.id}.parquet").exists()


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

    packs = packer(place(top), place(top.parent / "out"))
    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(kind):
        packs.pack(Portion((item("a.png"),)))


def test_a_transient_error_is_tried_again(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_each(top, {"a.png": picture(1), "b.png": picture(2)})
    faults: Iterator[OSError] = iter([OSError(5, "Input/output error")] * 4)
    real = open

    def flaky(path: Any, *rest: Any, **named: Any) -> Any:
        if str(path).endswith("a.png'") and (fault := next(faults, None)):
            raise fault
        return real(path, *rest, **named)

    monkeypatch.setattr("builtins.open", flaky)
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    _, entries = pack(top, [item("a.png"), item("b.png")])
    assert outcomes(entries) == {"a.png": "Unreadable", "b.png": PACKED} and pauses == [1, 5, 15]
    faults = iter([OSError(5, "Input/output error")] * 3)
    _, entries = pack(top, [item("a.png", stamp="2"), item("b.png", stamp="2")])
    assert set(outcomes(entries).values()) == {PACKED} and pauses == [1, 5, 15] * 2


def test_portions_are_bounded_and_hold_an_archive_together(top: Path, catalog: Catalog) -> None:
    loose = {f"{seed}.png": picture(seed) for seed in range(20)}
    write_each(top, loose | {"a.zip": zipped({f"{seed}.png": picture(100 + seed) for seed in range(9)})})
    find(catalog, place(top))
    catalog.run("UPDATE items SET due = outcome IS NULL")
    portions = list(portions_of(catalog, 4, 1 << 20))
    items = [one for portion in portions for one in portion.items]
    assert sorted(one.item for one in items) == sorted([*loose, *(f"a.zip/{seed}.png" for seed in range(9))])
    assert sum(any(one.member for one in portion.items) for portion in portions) == 1
    assert all(len([one for one in portion.items if not one.member]) <= 4 for portion in portions)
    assert [one.item for one in items if not one.member] != list(loose)  # an order that has nothing to do with names
    small = list(portions_of(catalog, 100, 1000))
    assert all(sum(one.size for one in portion.items if not one.member) <= 1000 for portion in small)


def test_objects_of_any_key_are_packed(s3: Callable[[str], str], catalog: Catalog) -> None:
    bucket, client = s3("any-key"), boto3.client("s3", region_name="us-east-1")
    good = ["in/a/x.png", "in/a b+c%20#?.png", "in/ü/y", "in/u\u0308.png", "in/a.png/z.png", "in/a.png"]
    keys = [*good, "in//x.png", "in/./x.png", "in/a//x", "in/a/../y.png"]
    for seed, key in enumerate(keys):
        client.put_object(Bucket="any-key", Key=key, Body=picture(seed))
    for key in ("in/a/", "in/marker/", "in/__MACOSX/x.png", "in/notes.txt"):
        client.put_object(Bucket="any-key", Key=key, Body=b"")
    origin, out = place(f"{bucket}/in/"), place(f"{bucket}/out")
    find(catalog, origin)
    assert not errors(catalog)
    catalog.run("UPDATE items SET due = outcome IS NULL")
    client.delete_object(Bucket="any-key", Key="in/a/x.png")
    totals = pack_here(catalog, packer(origin, out), 1, None)
    assert (totals.rows, totals.refused) == (len(keys) - 1, 1)
    (portion,) = read_portions(out)
    assert outcomes({row["item"]: row for row in portion.rows.to_pylist()})["a/x.png"] == "Vanished"
    table = pq.read_table(f"{out.path}/{portion.shards[0].name}", filesystem=out.arrow_filesystem)
    assert set(table["source_uri"].to_pylist()) == {f"{bucket}/{key}" for key in keys[1:]}
    names = table["image_id"].to_pylist()
    classes = dict(zip(names, folder_classes(names).classes, strict=True))
    assert {classes[name] for name in ("/x.png", "./x.png", "a.png", "ü/y")} == {None, "ü"} and classes["a//x"] == "a"


def test_names_are_pseudonyms(top: Path, catalog: Catalog) -> None:
    write_each(top, {"Smith/a.png": picture(1), "b.zip": zipped({"Jones.png": picture(2)})})
    find(catalog, place(top), BY_PSEUDONYM)
    catalog.run("UPDATE items SET due = outcome IS NULL")
    pack_here(catalog, packer(place(top), place(top.parent / "out"), BY_PSEUDONYM), 1, None)
    ids = {BY_PSEUDONYM.item("Smith/a.png"), BY_PSEUDONYM.item("b.zip/Jones.png")}
    rows = rows_of(top.parent / "out")
    assert {row["image_id"] for row in rows} == ids
    assert {row["source_uri"] for row in rows} == {f"medfocus:{name}" for name in ids}
    content = b"".join(file.read_bytes() for file in (top.parent / "out").rglob("*.parquet"))
    assert not any(name in content for name in (b"Smith", b"Jones", b"b.zip"))


def test_the_configuration_reaches_the_packer(tmp_path: Path) -> None:
    config = load_config(None, ["pack.bits=16", "pack.frames=middle", "pack.window=1", "deid.dates=none"])
    made = packer_of(place(tmp_path), place(tmp_path), BY_PATH, config)
    assert (made.convert.display.bits, made.convert.display.window, made.convert.choice.which) == (16, 1, "middle")
    assert made.convert.dates == "none" and made.section == config.pack
    assert packer_of(place(tmp_path), place(tmp_path), BY_PATH, Config()).convert.display.bits == 8
