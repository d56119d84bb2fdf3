import logging
import multiprocessing
import stat
from pathlib import Path

import pytest

from medfocus.pipeline.config import DeidSection
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.key import KEY_FILE, KEY_VARIABLE, find_key, load_key

SECRET = "correct horse battery staple 0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> DeidSection:
    file = folder / "key"
    file.write_bytes(content)
    file.chmod(mode)
    return DeidSection(key_file=str(file))


def test_the_variable_goes_before_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f" {SECRET}\n")
    assert load_key(key_file(tmp_path, b"x" * 32), str(tmp_path)) == SECRET.encode()
    assert not (tmp_path / KEY_FILE).exists()


@pytest.mark.parametrize("key", ["", "short", "x" * 31, f"{'x' * 31} \n"])
def test_a_short_key_is_refused_without_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(UsageError, match="at least 32 are needed; make one with") as found:
        load_key(DeidSection(), str(tmp_path))
    assert not key.strip() or key.strip() not in str(found.value)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(UsageError, match="at least 32"):
        load_key(key_file(tmp_path, key.encode()), str(tmp_path))


@pytest.mark.parametrize("content", [SECRET.encode(), f"{SECRET}\r\n".encode()])
def test_a_text_in_a_file_is_read_without_its_line_end(tmp_path: Path, content: bytes) -> None:
    assert load_key(key_file(tmp_path, content), "") == SECRET.encode()


def test_random_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    content = b"\n\xff" + bytes(29) + b"\n"
    assert load_key(key_file(tmp_path, content), "") == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match=r"other accounts may use this key; run chmod 600 /.*key$"):
        load_key(key_file(tmp_path, SECRET.encode(), mode), "")


def test_a_file_that_is_not_there_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_key(DeidSection(key_file=str(tmp_path / "missing")), "")
    with pytest.raises(UsageError, match="cannot be read"):
        load_key(DeidSection(key_file=str(tmp_path)), "")


def test_a_key_is_made_once_and_can_be_read_by_its_owner_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = tmp_path / "work"
    assert find_key(DeidSection(), str(work)) is None and not work.exists()
    with caplog.at_level(logging.INFO, "medfocus"):
        first = load_key(DeidSection(), str(work))
        assert load_key(DeidSection(), str(work)) == find_key(DeidSection(), str(work)) == first
    assert len(caplog.records) == 1 and "keep it" in caplog.text and first.decode() not in caplog.text
    assert stat.S_IMODE((work / KEY_FILE).stat().st_mode) == 0o600
    assert [file.name for file in work.iterdir()] == [KEY_FILE]
    (work / KEY_FILE).chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        load_key(DeidSection(), str(work))


def test_processes_that_make_a_key_at_once_have_the_same(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        keys = pool.starmap(load_key, [(DeidSection(), str(tmp_path / "work"))] * 32)
    assert len(set(keys)) == 1


def test_a_work_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(UsageError, match=f"no key can be made there .*; set work to .*, or {KEY_VARIABLE}"):
        load_key(DeidSection(), str(tmp_path / "work"))
