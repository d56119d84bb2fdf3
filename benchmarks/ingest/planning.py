"""Driver memory of a run of ``pack`` until its first portion, over a source of many objects."""

import os
import resource
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from medfocus.pipeline.config import PackSection, StorageSection
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from medfocus.pipeline.ingest.catalog import Catalog, groups
from medfocus.pipeline.ingest.history import History
from medfocus.pipeline.ingest.items import DICOM, Naming, SurveyRow
from medfocus.pipeline.ingest.labelling import set_first_days
from medfocus.pipeline.ingest.source import LeftOut, walk_source
from medfocus.pipeline.ingest.stream import portions_of


def plan(url: str) -> tuple[int, int, float, int]:
    """List the objects of a bucket and cut them into portions, with a survey that reads nothing.

    Args:
        url: of a server that answers listings.

    Returns:
        Number of items and of portions, seconds, and the peak resident memory of this process in MiB.
    """
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")
    started = monotonic()
    storage = StorageSection(s3_endpoint=url)
    naming = Naming(Pseudonyms(b"a key of the benchmark that is no secret"), keep=False)
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog(Path(folder) / "catalog.sqlite")
        catalog.list_files(walk_source(locate("s3://archive/images", storage), LeftOut()), naming)
        _survey(catalog)
        catalog.name_items(naming)
        History(catalog, locate(f"{folder}/shards", storage), None, naming.pseudonyms).mark_due()
        set_first_days(catalog)
        portions = items = 0
        for portion in portions_of(catalog, PackSection().rows_per_shard, PackSection().bytes_per_shard):
            portions += 1
            items += len(portion.items)
        catalog.close(remove=True)
    return items, portions, monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _survey(catalog: Catalog) -> None:
    """Let each object be a slice of one of many studies."""
    for files in groups(catalog.files_to_survey(), 10_000):
        catalog.add_survey([file["number"] for file in files], map(_slice, files), "{}")


def _slice(file: dict[str, Any]) -> SurveyRow:
    study = file["number"] // 100
    ids = {"patient": f"{study // 3:032x}", "study": f"2.25.{study}", "series": f"2.25.{study}0"}
    return SurveyRow(file["number"], "", 0, file["size"], DICOM, **ids, study_date=45_000 + study % 1000)
