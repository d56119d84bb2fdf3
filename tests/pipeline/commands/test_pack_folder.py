"""What ``pack`` makes of folders as people have them, and of their labels."""

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from medfocus.pipeline.commands import evaluate, pack, quarantine
from medfocus.pipeline.config import Config, load_config
from medfocus.pipeline.data import records
from medfocus.pipeline.errors import MedFocusError, UsageError
from medfocus.pipeline.identity.key import load_key
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, pseudonym_of
from tests.pipeline.evaluation.archive import draw_rows, write_predictions
from tests.pipeline.ingest.files import (
    PACK_SETTINGS,
    counted,
    ct,
    ct_samples,
    decoded,
    picture,
    rows_of,
    survey_here,
    volume,
    write,
    write_each,
    write_raw,
)


def odd_folder(top: Path) -> None:
    """A folder with something odd of every kind, and eight images."""
    for index in range(3):
        write(top / "benign" / f"{index}.png", picture(index))
        write(top / "malignant " / f"{index}", picture(10 + index))
    write(top / "__MACOSX" / "benign" / "._0.png"), write(top / ".git" / "0.png"), write(top / "benign" / "Thumbs.db")
    write(top / "benign" / "report.txt", b"Smith")
    write(top / "benign" / "empty.png", b"")
    (top / "loop").symlink_to(".")
    (top / "benign" / "gone.png").symlink_to("nothing")
    os.mkfifo(top / "benign" / "pipe.png")
    write_raw(top / "benign", b"caf\xe9.png", picture(20))
    write(top / "benign" / unicodedata.normalize("NFD", "ü.png"), picture(21))


@pytest.mark.parametrize("labelled", ["folders", "file"])
def test_a_folder_with_everything_odd_is_packed(
    top: Path, tmp_path: Path, config: Config, ray_session: None, labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd_folder(top)
    labels = None
    if labelled == "file":
        lines = [f"benign\\{index}.PNG;benign" for index in range(3)]
        lines += [f"./malignant /{index};malignant" for index in "012"]
        lines += ["benign/café.png;benign", "benign/ü;benign ", ";", "benign/empty.png;benign", "benign/0.PNG;benign"]
        labels = str(write(tmp_path / "labels.csv", "\r\n".join(["sep=;", " File ;LABEL", *lines]).encode("utf-16")))
    out = tmp_path / "out"
    result = pack.run(config, str(top), str(out), labels)
    rows = counted(out)
    assert {name: row["label"] for name, row in rows.items()} == {
        **{f"benign/{index}.png": "benign" for index in range(3)},
        **{f"malignant /{index}": "malignant" for index in range(3)},
        "benign/caf%E9.png": "benign",
        "benign/ü.png": "benign",
    }
    assert rows["benign/caf%E9.png"]["source_uri"] == f"file://{top}/benign/caf%E9.png"
    assert (result["rows"], result["shards"], result["labelled"], result["quarantined"]) == (8, 2, 8, 3)
    records.check_record(pq.read_schema(out / "quarantine" / "pack.parquet"), records.QUARANTINE, "quarantine")
    assert {(row["image_id"], row["stage"], row["error"]) for row in rows_of(out / "quarantine")} == {
        ("benign/empty.png", "pack", "EmptyImage"),
        ("benign/gone.png", "pack", "BrokenLink"),
        ("benign/pipe.png", "pack", "NotAFile"),
    }
    assert quarantine.run(config, str(out))["quarantined"] == 3
    assert "EmptyImage" in capsys.readouterr().out


def test_a_file_that_was_mended_leaves_quarantine(top: Path, tmp_path: Path, config: Config, without_ray: None) -> None:
    write(top / "a.png"), write(top / "b.png", b"")
    out = tmp_path / "out"
    assert pack.run(config, str(top), str(out))["quarantined"] == 1
    (out / "manifest.json").unlink(), shutil.rmtree(out / "manifests")  # as if the call had been stopped
    write(top / "b.png", picture(1))
    assert pack.run(config, str(top), str(out))["quarantined"] == 0
    assert not (out / "quarantine" / "pack.parquet").exists() and set(counted(out)) == {"a.png", "b.png"}


def test_nothing_to_pack_is_told(
    top: Path, tmp_path: Path, config: Config, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UsageError, match="no such folder or prefix"):
        pack.run(config, str(top), out)
    top.mkdir()
    with pytest.raises(UsageError, match=r"holds no image that can be packed \(nothing is there\)"):
        pack.run(config, str(top), out)
    write(top / ".git" / "x")
    with pytest.raises(UsageError, match=r"\(junk 1\)"):
        pack.run(config, str(top), out)
    write(top / "a.png", b""), write(top / "notes.txt", b"no image")
    with pytest.raises(UsageError, match=r"\(.txt 1, EmptyImage 1\)"):
        pack.run(config, str(top), out)
    write(top / "b.png")

    def vanishing(*arguments: Any) -> None:
        survey_here(*arguments)
        (top / "b.png").unlink()

    monkeypatch.setattr(pack, "survey", vanishing)
    with pytest.raises(MedFocusError, match="no image can be packed; medfocus quarantine"):
        pack.run(config, str(top), out)
    assert {row["error"] for row in rows_of(tmp_path / "out" / "quarantine")} == {"EmptyImage", "Vanished"}


def test_labels_of_packed_images_stay_and_this_is_told(
    top: Path, tmp_path: Path, config: Config, without_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_each(top, {f"{seed}.png": picture(seed) for seed in range(4)})
    labels, out = tmp_path / "labels.csv", tmp_path / "out"
    told = "images are packed with another label or patient than they have now"
    for text in ("0.png,a,\n1.png,b,\n2.png,,P\n", "0.png,a,\n1.png,b,\n2.png,,P\n3.png,,\n"):
        pack.run(config, str(top), str(out), str(write(labels, f"file,label,patient_id\n{text}".encode())))
        assert told not in caplog.text
    before = counted(out)
    write(labels, b"file,label,patient_id\n0.png,b,\n1.png,b,P\n2.png,a,P\n3.png,,\n")
    pack.run(config, str(top), str(out), str(labels))
    assert f"3 {told}" in caplog.text and counted(out) == before
    caplog.clear()
    pack.run(config, str(top), str(out))
    assert told not in caplog.text


def test_16_bits_and_middle_frames_are_packed(top: Path, tmp_path: Path, work: Path, without_ray: None) -> None:
    samples = ct_samples(1, 5, 8, 8)
    write(top / "a.dcm", ct(samples)), write(top / "v.nii.gz", volume(1, 3))
    settings = [f"work={work}", *PACK_SETTINGS, "deid.names=keep", "pack.bits=16", "pack.frames=middle"]
    pack.run(load_config(None, settings), str(top), str(tmp_path / "out"))
    rows = counted(tmp_path / "out")
    assert {name: row["frame"] for name, row in rows.items()} == {"a.dcm-2": 2, "v.nii.gz-1": 1}
    stored = decoded(rows.values())["a.dcm-2"].astype(np.int64)
    assert np.array_equal(np.argsort(stored, axis=None), np.argsort(samples[2], axis=None))
    assert all(len(row["window"]) == 2 for row in rows.values())


@pytest.mark.parametrize("columns", ["file", "path", "image_id", "both", "other id", "other file"])
def test_pack_and_evaluate_read_the_same_labels(
    top: Path, tmp_path: Path, config: Config, without_ray: None, columns: str
) -> None:
    predicted = draw_rows(12)
    for seed, row in enumerate(predicted):
        write(top / row["image_id"], picture(seed))
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


def test_label_files_of_others_are_packed(label_files: Path, tmp_path: Path, config: Config, without_ray: None) -> None:
    pseudonyms = Pseudonyms(load_key(config.deid, config.work))
    for path in sorted(label_files.glob("*.csv")):
        out = tmp_path / path.stem
        result = pack.run(config, str(label_files / "in"), str(out), str(path))
        assert (result["rows"], result["labelled"]) == (4, 4), path.name
        rows = sorted((row["image_id"], row["label"], row["patient_id"]) for row in counted(out).values())
        patients = [pseudonym_of(pseudonyms, "patient", f"P{number}") for number in range(4)]
        assert rows == [(f"{i}.png", ("malignant", "benign")[i % 2], patients[i]) for i in range(4)], path.name
