"""What the walk of a source yields, and what it leaves out by names alone."""

import logging
import os
from pathlib import Path

import pytest

from medfocus.pipeline.data.local_tree import Entry, Kind
from medfocus.pipeline.data.storage import Location, StorageError
from medfocus.pipeline.ingest.source import (
    LeftOut,
    identifier,
    is_junk,
    read_with_retries,
    refusal_of,
    safe_suffix,
    walk_source,
)
from tests.pipeline.ingest.files import place, write


def walk(top: Path) -> tuple[dict[str, Entry], LeftOut]:
    left_out = LeftOut()
    return {entry.name: entry for entry in walk_source(place(top), left_out)}, left_out


def test_what_systems_and_tools_leave_behind_is_left_out(top: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("__MACOSX", ".Trash-1000", ".thumbnails", "$RECYCLE.BIN", ".ipynb_checkpoints", "@eaDir", ".git"):
        write(top / folder / "deep" / "1.png")
        write(top / "cat" / folder / "1.png")
    for folder in ("lost+found", "System Volume Information", "__macosx", ".Smith"):
        write(top / folder / "1.png")
    for name in ("._1.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        write(top / "cat" / name)
    write(top / "cat" / "1.png"), write(top / "dog" / "2.png")
    found, left_out = walk(top)
    assert set(found) == {"cat/1.png", "dog/2.png"} and left_out.junk.total() == 22
    with caplog.at_level(logging.INFO):
        left_out.log()
    assert "22 files and folders of systems and tools are left out" in caplog.text
    assert "hidden 11" in caplog.text and "Smith" not in caplog.text


def test_what_cannot_be_used_is_told_and_a_link_is_followed_once(top: Path, plain_user: None) -> None:
    write(top / "ok.png", b"12345")
    write(top / "closed" / "1.png")
    (top / "closed").chmod(0)
    write(top.parent / "elsewhere" / "2.png")
    (top / "linked").symlink_to(top.parent / "elsewhere")
    (top / "linked again").symlink_to(top.parent / "elsewhere")
    (top / "broken.png").symlink_to("nothing")
    (top / "loop").symlink_to(".")
    os.mkfifo(top / "pipe.png")
    try:
        found, left_out = walk(top)
    finally:
        (top / "closed").chmod(0o755)
    troubles = {name: entry.error for name, entry in found.items() if entry.kind is Kind.TROUBLE}
    assert troubles == {"closed/": "Unreadable", "broken.png": "BrokenLink", "pipe.png": "NotAFile"}
    assert set(found) - set(troubles) == {"ok.png", "linked/2.png"} and found["ok.png"].size == 5
    assert left_out.repeated == 2
    assert all(str(top) not in entry.message and "\n" not in entry.message for entry in found.values())


def test_names_are_text_of_one_form() -> None:
    assert identifier("u\u0308.png") == "ü.png"
    assert identifier("caf\udce9.png") == "caf%E9.png"
    assert identifier("100%.png") == "100%.png"


def test_junk_is_told_by_one_part_of_a_path() -> None:
    assert is_junk("__MACOSX") and is_junk("THUMBS.DB") and is_junk(".hidden")
    assert not is_junk(".") and not is_junk("..") and not is_junk("macosx") and not is_junk("a.png")


def test_a_suffix_is_named_where_it_is_that_of_a_type() -> None:
    suffixes = {"a.TXT": ".txt", "a.dcm": ".dcm", "MR.Jones": "another suffix", "scan": "no suffix", "x.19700101": ""}
    assert {name: safe_suffix(name) for name in suffixes} == suffixes | {"x.19700101": "another suffix"}


def test_a_transient_error_is_tried_again_and_a_permanent_one_is_not(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = place(write(top / "a.png", b"content"))
    assert read_with_retries(location) == b"content" and read_with_retries(location, 3) == b"con"
    faults: list[OSError] = []
    real = open

    def flaky(path: object, *rest: object, **named: object) -> object:
        if str(path).endswith("a.png'") and faults:
            raise faults.pop()
        return real(path, *rest, **named)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", flaky)
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    faults += [OSError(5, "Input/output error")] * 3
    assert read_with_retries(location) == b"content" and pauses == [1, 5, 15]
    faults += [OSError(5, "Input/output error")] * 4
    with pytest.raises(StorageError) as caught:
        read_with_retries(location)
    assert pauses == [1, 5, 15] * 2 and refused(caught.value, location) == "Unreadable"
    faults.append(PermissionError(13, "Permission denied"))
    with pytest.raises(StorageError) as caught:
        read_with_retries(location)
    assert pauses == [1, 5, 15] * 2 and refused(caught.value, location) == "Unreadable"
    with pytest.raises(StorageError) as caught:
        read_with_retries(place(top / "gone.png"))
    assert refused(caught.value, place(top / "gone.png")) == "Vanished"


def refused(error: StorageError, location: Location) -> str:
    """The class of the refusal, whose message must not name the file."""
    kind, message = refusal_of(error, location)
    assert location.path not in message and "\n" not in message
    return kind
