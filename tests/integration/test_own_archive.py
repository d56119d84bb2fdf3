"""The page of the documentation about archives of one's own runs as it stands there, on files that are made here."""

import json
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow.dataset as pads
import pytest
import yaml
from PIL import Image
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from medfocus.starter.phantoms import write_set
from tests.integration.one_process import run_commands

pytestmark = pytest.mark.commands

REPOSITORY = Path(__file__).parents[2]
PATIENTS, LABELLED, LATE = 12, 8, 2
SMALL = {"segment": {"points_per_side": 2}, "train": {"epochs": 1, "folds": 2}, "burned_in": {"ocr": "never"}}


def commands() -> list[str]:
    """The commands of the page."""
    page = (REPOSITORY / "docs" / "bring-your-own-archive.md").read_text()
    return [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]


def name_of(patient: int) -> str:
    return f"Ottokar{patient:02d}^Brendelmann"


def study_of(patient: int, study: int) -> str:
    return f"1.2.826.0.1.3680043.8.498.77{patient:02d}{study}"


def slice_of(pixels: np.ndarray, patient: int, study: int) -> Dataset:
    """A slice of a patient, with the identity that a scanner writes."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{study_of(patient, study)}.9"
    image.StudyInstanceUID, image.SeriesInstanceUID = study_of(patient, study), f"{study_of(patient, study)}.1"
    image.PatientName, image.PatientID, image.PatientBirthDate = name_of(patient), f"44100{patient:02d}", "19610417"
    image.StudyDate, image.Modality, image.PatientSex = f"2023031{study}", "MR", "F"
    image.InstitutionName, image.ReferringPhysicianName = "Klinikum Wolkenstein", "Rosalinde^Tannhofer"
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = pixels.tobytes()
    return image


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with what the page begins with: DICOM files, also in a zip, and a spreadsheet."""
    archive = tmp_path / "archive"
    archive.mkdir()
    write_set(tmp_path / "phantoms", 2 * PATIENTS, seed=0, preset="easy", size=64)
    pictures = sorted((tmp_path / "phantoms" / "images").iterdir())
    sheet = openpyxl.Workbook()
    rows = sheet.active
    rows.append(["StudyInstanceUID", "label"])
    for number, picture in enumerate(pictures):
        patient, study = divmod(number, 2)
        image = slice_of(np.asarray(Image.open(picture).convert("L")), patient, study)
        folder = tmp_path / "late" if patient >= PATIENTS - LATE else archive / name_of(patient)
        folder.mkdir(exist_ok=True, parents=True)
        dcmwrite(folder / f"IM{number}", image, enforce_file_format=True)
        if patient < LABELLED:
            rows.append([study_of(patient, study), ("mass", "cyst ")[patient % 2]])
    with zipfile.ZipFile(archive / "more.zip", "w") as more:
        for file in sorted((archive / name_of(0)).iterdir()):
            more.write(file, f"{name_of(0)}/{file.name}")
            file.unlink()
    sheet.save(tmp_path / "labels.xlsx")
    (tmp_path / "known-names.txt").write_text("Brendelmann\nWolkenstein\nTannhofer\n4410003\n19610417\n20230311\n")
    (tmp_path / "withdrawn.txt").write_text("4410001\n")
    return tmp_path


def execute(lines: Sequence[str], home: Path) -> list[dict]:
    """Run lines that follow one another: those of MedFocus in one process, others in a shell; their JSON results."""
    if not lines[0].startswith("medfocus "):
        scripts = Path(sys.executable).parent
        environment = {"PATH": f"{scripts}:/usr/bin:/bin", "HOME": str(home)}
        for line in lines:
            subprocess.run(line, shell=True, executable="/bin/bash", cwd=home, env=environment, check=True)
        return []
    ended = run_commands([shlex.split(line)[1:] for line in lines], home)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert not any(word in ended.stderr + ended.stdout for word in ("Brendelmann", "44100", "Wolkenstein"))
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


def test_the_page_runs_from_dicom_and_a_spreadsheet_to_a_scored_archive(home: Path) -> None:
    first, again, withdrawn = split_before(commands(), "medfocus pack ")[1:]
    setting_up = split_before(commands(), "medfocus pack ")[0]
    execute(setting_up, home)
    settings = yaml.safe_load((home / "archive.yaml").read_text())
    (home / "archive.yaml").write_text(yaml.safe_dump(settings | SMALL))
    packed, causes, searched, _, _, scored, evaluated = execute(first, home)
    assert packed["rows"] == scored["scored"] == 2 * (PATIENTS - LATE) and packed["labels"]["patients"] == LABELLED
    assert causes["quarantined"] == 0 and searched["needles"] == 6 and evaluated["rows"] == 2 * LABELLED
    assert evaluated["intervals"] == "by patient"
    (home / "late").rename(home / "archive" / "late")
    packed, scored = execute(again, home)
    assert packed["packed"] == 2 * LATE and packed["manifest_version"] == 2
    assert scored["resumed"] == 2 * (PATIENTS - LATE) and scored["rows"] == 2 * PATIENTS
    packed, scored = execute(withdrawn, home)
    assert packed["rows"] == scored["scored"] == 2 * (PATIENTS - 1)
    predictions = pads.dataset(home / "out" / "predictions").to_table().to_pylist()
    assert {row["label"] for row in predictions} <= {"mass", "cyst"}
    assert len({row["patient_id"] for row in predictions}) == PATIENTS - 1


def split_before(lines: Sequence[str], start: str) -> list[list[str]]:
    """Lines in groups, of which all but the first begin with ``start``."""
    groups: list[list[str]] = [[]]
    for line in lines:
        groups += [[]] if line.startswith(start) else []
        groups[-1].append(line)
    return groups
