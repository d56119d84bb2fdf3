import gzip
import os
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.cli import main
from medfocus.pipeline.commands import verify_deid
from medfocus.pipeline.config import Config
from medfocus.pipeline.errors import MedFocusError, UsageError

NEEDLES = ["Miller^Anna", "1234567890", "1950-01-31", "Kim"]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Shards, a work folder and needles, without identity."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "work" / "pack").mkdir(parents=True)
    table = pa.table({"image_id": ["bcd", "fgh"], "image": [b"\x89PNG\r\n\x1a\nx", b""], "site": ["x", "kimono"]})
    pq.write_table(table, tmp_path / "shards" / "part-0.parquet")
    (tmp_path / "work" / "log.txt").write_text("12:00 INFO packed rows=2\n")
    (tmp_path / "work" / "pseudonym.key").write_text("Miller^Anna")
    (tmp_path / "work" / "pack" / "catalog.sqlite").write_text("Miller^Anna")
    (tmp_path / "work" / "needles.txt").write_text("\n".join(NEEDLES))
    return tmp_path


def verify(prefix: Path) -> dict[str, int]:
    config = Config(work=str(prefix / "work"))
    return verify_deid.run(config, str(prefix / "shards"), str(prefix / "work" / "needles.txt"))


def test_clean_shards_are_told_with_what_was_searched(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = verify(prefix)
    size = sum((prefix / name).stat().st_size for name in ("shards/part-0.parquet", "work/log.txt"))
    assert result == {"needles": 4, "forms": result["forms"], "short": 1, "files": 2, "bytes": size, "unread": 0}
    assert capsys.readouterr().out == (
        f"4 needles in {result['forms']} forms, 1 of them short, searched in {size} bytes of 2 files: 0 found\n"
    )


def test_needles_are_told_by_number_and_place(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"image_id": ["bcd", "fgh"], "site": ["x", "the Miller, Anna " * 9]})
    pq.write_table(table, prefix / "shards" / "part-1.parquet")
    (prefix / "work" / "old.log.gz").write_bytes(gzip.compress(b"born 31.01.1950"))
    (prefix / "shards" / "anna_miller-1234567890.json").write_text("{}")
    with sqlite3.connect(prefix / "work" / "mlflow.db") as database:
        database.execute("CREATE TABLE tags (value)")
        database.execute("INSERT INTO tags VALUES ('Mr Kim')")
    with pytest.raises(MedFocusError, match=r"4 of 4 needles were found in \d places; keep .*shards back"):
        verify(prefix)
    text = capsys.readouterr().out
    shards, work = prefix / "shards", prefix / "work"
    for line in (
        f"needle     1 is in name of {shards}/[needle 1]-[needle 2].json",
        f"needle     2 is in name of {shards}/[needle 1]-[needle 2].json",
        f"needle     1 is in {shards}/part-1.parquet: column site, row 1",
        f"needle     3 is in {work}/old.log.gz: gzip",
        f"needle     4 is in {work}/mlflow.db: table tags, row 0",
    ):
        assert line in text.splitlines()
    assert not [needle for needle in (*NEEDLES, "anna_miller") if needle.casefold() in text.casefold()]


def test_a_tracking_store_elsewhere_is_searched(
    prefix: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = tmp_path_factory.mktemp("store") / "runs.db"
    database.write_text("Miller^Anna")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    with pytest.raises(MedFocusError, match="1 of 4 needles"):
        verify(prefix)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example")
    verify(prefix)
    assert "is a server, and is not searched" in caplog.text and "secret" not in caplog.text


def test_names_that_are_not_utf_8_are_searched(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsencode(prefix / "shards") + b"/caf\xe9 Miller^Anna"
    Path(os.fsdecode(name)).write_bytes(b"")
    with pytest.raises(MedFocusError, match="1 of 4 needles"):
        verify(prefix)
    assert "[needle 1]" in capsys.readouterr().out


def test_what_cannot_be_read_is_counted(prefix: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (prefix / "shards" / "part-0.parquet").read_bytes()
    (prefix / "shards" / "part-0.parquet").write_bytes(whole[:-9])
    (prefix / "work" / "log.gz").write_bytes(gzip.compress(b"packed" * 99)[:-9])
    assert verify(prefix)["unread"] == 2
    assert "2 compressed parts are damaged or encrypted" in caplog.text


def test_wrong_calls(prefix: Path) -> None:
    with pytest.raises(UsageError, match="nothing is there"):
        verify_deid.run(Config(work=str(prefix)), str(prefix / "missing"), str(prefix / "work" / "needles.txt"))
    with pytest.raises(UsageError, match="cannot be read"):
        verify_deid.run(Config(work=str(prefix)), str(prefix / "shards"), str(prefix / "missing"))


def test_exit_codes(prefix: Path) -> None:
    call = ["verify-deid", str(prefix / "shards"), "--planted", str(prefix / "work" / "needles.txt")]
    call += ["--set", f"work={prefix / 'work'}", "--json"]
    assert main(call) == 0
    (prefix / "shards" / "notes.txt").write_text("miller^anna")
    assert main(call) == 1
    assert main([*call[:2], "--planted", str(prefix / "missing")]) == 2
