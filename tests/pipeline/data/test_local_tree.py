"""A walk through a local folder with everything in it that a folder can hold."""

import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from medfocus.pipeline.config import StorageSection
from medfocus.pipeline.data.local_tree import Entry, Kind, walk
from medfocus.pipeline.data.storage import locate


def entries(folder: Path) -> list[Entry]:
    return list(walk(str(folder), lambda name: name == "junk"))


def names(folder: Path, kind: Kind = Kind.FILE) -> list[str]:
    return sorted(entry.name for entry in entries(folder) if entry.kind is kind)


def errors(folder: Path) -> dict[str, str]:
    return {entry.name: entry.error for entry in entries(folder) if entry.kind is Kind.TROUBLE}


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def top(tmp_path: Path) -> Path:
    write(tmp_path / "top" / "a" / "1.png", b"123")
    write(tmp_path / "top" / "junk" / "deep" / "2.png")
    return tmp_path / "top"


def test_files_come_with_their_size_and_junk_is_not_entered(top: Path) -> None:
    stamp = locate(str(top / "a" / "1.png"), StorageSection()).stamp()
    assert entries(top) == [Entry("junk", Kind.SKIPPED), Entry("a/1.png", Kind.FILE, 3, stamp=stamp)]


@pytest.mark.parametrize("target", ["a", "..", ".", "a/loop", "../..", "a/1.png"])
def test_a_link_into_the_folder_or_above_it_repeats(top: Path, target: str) -> None:
    (top / "loop").symlink_to(target if target != "a/loop" else "../top")
    (top / "a" / "loop").symlink_to("..")
    assert names(top) == ["a/1.png"] and names(top, Kind.REPEATED) == ["a/loop", "loop"]


def test_links_out_of_the_folder_are_followed_once_each(top: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for index in range(3):
        write(pool / "sub" / f"{index}.png")
    (pool / "back").symlink_to(top)
    (pool / "self").symlink_to(pool)
    (top / "b-file").symlink_to(pool / "sub" / "0.png")
    (top / "c-sub").symlink_to(pool / "sub")
    (top / "d-file").symlink_to(pool / "sub" / "1.png")
    (top / "e-pool").symlink_to(pool)
    (top / "f-pool").symlink_to("e-pool")
    assert names(top) == ["a/1.png", "b-file", "c-sub/1.png", "c-sub/2.png"]
    assert Counter(entry.kind for entry in entries(top))[Kind.REPEATED] == 6


def test_a_link_to_what_is_junk_by_its_place_is_a_file(top: Path) -> None:
    """As in data sets under version control, whose files are links into a hidden folder."""
    (top / "a" / "2.png").symlink_to("../junk/deep/2.png")
    (top / "a" / "3.png").symlink_to("../junk/deep/2.png")
    assert names(top) == ["a/1.png", "a/2.png"] and names(top, Kind.REPEATED) == ["a/3.png"]


def test_hard_links_are_files_of_their_own(top: Path) -> None:
    (top / "b.png").hardlink_to(top / "a" / "1.png")
    assert names(top) == ["a/1.png", "b.png"]


def test_a_name_that_is_not_utf8_comes_with_all_its_bytes(top: Path) -> None:
    folder = os.fsencode(top) + b"/m\xfcll"
    os.mkdir(folder)  # noqa: PTH102  a Path takes no bytes
    with open(folder + b"/\xe9\xff.png", "wb"):  # noqa: PTH123
        pass
    assert names(top) == ["a/1.png", "m\udcfcll/\udce9\udcff.png"]


def test_what_is_no_file_has_an_entry_and_nothing_waits_for_it(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(top / "pipe.png")
    (top / "link-to-pipe.png").symlink_to("pipe.png")
    (top / "device.png").symlink_to("/dev/zero")
    (top / "gone.png").symlink_to("nothing")
    (top / "file-as-folder.png").symlink_to("a/1.png/x")
    (top / "itself.png").symlink_to("itself.png")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(top)  # the path of a socket may not be long
        listening.bind("socket.png")
        assert errors(top) == {
            "pipe.png": "NotAFile",
            "device.png": "NotAFile",
            "socket.png": "NotAFile",
            "gone.png": "BrokenLink",
            "file-as-folder.png": "BrokenLink",
            "itself.png": "BrokenLink",
        }
    assert names(top, Kind.REPEATED) == ["link-to-pipe.png"] and names(top) == ["a/1.png"]


def test_a_folder_that_may_not_be_read_stops_nothing_else(top: Path, plain_user: None) -> None:
    write(top / "closed" / "3.png")
    write(top / "half" / "4.png")
    (top / "closed").chmod(0)
    (top / "half").chmod(0o444)  # its names may be read, but not what they name
    try:
        assert errors(top) == {"closed/": "Unreadable", "half/4.png": "Unreadable"}
        assert names(top) == ["a/1.png"]
        with pytest.raises(PermissionError):
            walk(str(top / "closed"), lambda name: False)
    finally:
        (top / "closed").chmod(0o755)
        (top / "half").chmod(0o755)


def test_no_message_names_anything(top: Path) -> None:
    (top / "Smith.png").symlink_to("nothing")
    os.mkfifo(top / "Jones.png")
    messages = [entry.message for entry in entries(top) if entry.kind is Kind.TROUBLE]
    assert len(messages) == 2
    assert not any(name in message for name in ("Smith", "Jones", str(top)) for message in messages)
