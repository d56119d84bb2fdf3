"""The quarantine of ``pack``: a row for each file that cannot be packed, with the reason."""

import pyarrow as pa

from medfocus.pipeline.data import records
from medfocus.pipeline.data.commit import QUARANTINE
from medfocus.pipeline.data.storage import Location
from medfocus.pipeline.ingest.catalog import Catalog
from medfocus.pipeline.ingest.items import Naming

_FILE = "pack.parquet"


def write(target: Location, catalog: Catalog, naming: Naming, origin: Location) -> int:
    """Write the files that cannot be packed; their number. Where there are none, remove the file of an earlier call."""
    file = target / QUARANTINE / _FILE
    rows = [
        {
            "image_id": item,
            "source_uri": naming.source_uri(item, f"{origin.uri}/{path}"),
            "stage": "pack",
            "error": error,
            "message": message or "",
        }
        for item, path, error, message in catalog.refusals(naming)
    ]
    if rows:
        file.write(records.encode(pa.Table.from_pylist(rows, schema=records.QUARANTINE)))
    else:
        file.delete()
    return len(rows)
