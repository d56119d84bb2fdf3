"""No identity leaves ``pack``: an archive with hundreds of planted names, ids and dates, searched byte by byte."""

import json
import logging
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from medfocus.pipeline.commands import pack, quarantine, verify_deid
from medfocus.pipeline.config import load_config
from medfocus.pipeline.errors import MedFocusError
from medfocus.pipeline.identity.key import load_key
from medfocus.pipeline.identity.mapping import read_mapping
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from tests.planted import plant

PATIENTS = 4


def test_no_planted_identifier_is_in_shards_logs_errors_or_the_tracking_store(
    tmp_path: Path, ray_session: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    source, shards = tmp_path / "source", tmp_path / "shards"
    source.mkdir()
    needles = plant(source, PATIENTS)
    assert len(needles) >= 500
    # A file that is refused, an archive that is cut, and labels that contradict themselves name nobody either.
    named = next(path for path in sorted(source.rglob("*.dcm")))
    named.with_name(f"broken-{named.name}").write_bytes(named.read_bytes()[:2000])
    archive = next(path for path in sorted(source.rglob("*")) if path.is_file() and path.read_bytes()[:2] == b"PK")
    archive.with_name(f"cut-{archive.name}").write_bytes(archive.read_bytes()[:-300])
    (tmp_path / "needles.txt").write_text("\n".join(needles))
    config = load_config(None, [f"work={tmp_path / 'work'}", "burned_in.ocr=never", "pack.rows_per_shard=16"])
    with caplog.at_level(logging.DEBUG):
        audit, mapping = tmp_path / "audit.json", tmp_path / "mapping"
        packed = pack.run(config, str(source), str(shards), audit=str(audit), mapping=str(mapping))
        quarantine.run(config, str(shards))
    assert packed["rows"] >= 10 * PATIENTS / 2 and packed["quarantined"] >= 1
    printed = "".join(capsys.readouterr()) + caplog.text + audit.read_text()
    assert not [number for number, needle in enumerate(needles) if needle in printed]
    found = verify_deid.run(config, str(shards), str(tmp_path / "needles.txt"))
    assert found["needles"] >= 500 and found["files"] > 3

    rows = pads.dataset(sorted(shards.glob("*.parquet"))).to_table().to_pylist()
    assert len({row["patient_id"] for row in rows if row["patient_id"]}) == PATIENTS
    assert {row["age_band"] for row in rows} <= {None, *(f"{age}-{age + 4}" for age in range(0, 90, 5)), "90+"}
    removed = json.loads(audit.read_text())["removed"]
    assert removed["PatientName"] and removed["private"] and removed["preamble"]
    originals = list(read_mapping(mapping, Pseudonyms(load_key(config.deid, config.work))))
    assert any(original.patient_id in needles for original in originals)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (audit, mapping))


def test_an_identity_that_is_kept_is_found(tmp_path: Path, ray_session: None) -> None:
    source = tmp_path / "source"
    source.mkdir()
    needles = plant(source, 1)
    (tmp_path / "needles.txt").write_text("\n".join(needles))
    config = load_config(None, [f"work={tmp_path / 'work'}", "burned_in.ocr=never", "deid.names=keep"])
    pack.run(config, str(source), str(tmp_path / "shards"))
    with pytest.raises(MedFocusError, match="needles were found"):
        verify_deid.run(config, str(tmp_path / "shards"), str(tmp_path / "needles.txt"))
