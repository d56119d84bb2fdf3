"""Record schemas: the columns of shard, feature, prediction, quarantine and index rows.

The name and the version of a record stand in the Parquet metadata. A reader refuses other records and versions.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.errors import UsageError

VERSION = "2"
CLASSES_KEY = b"medfocus.classes"
# Prefix of the columns of feature rows that hold augmented views of the image.
AUGMENTED = "augmented_"
_NAME_KEY, _VERSION_KEY = b"medfocus.record", b"medfocus.version"


def _record(name: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={_NAME_KEY: name.encode(), _VERSION_KEY: VERSION.encode()})


_IDENTITY_FIELDS = [
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("patient_id", pa.string()),
    pa.field("site", pa.string()),
    pa.field("split", pa.string()),
]

# The focus mask of an image in COCO's run-length encoding, and the rank score of its best region. The mask fits the
# image as a viewer shows it: ``size`` is height and width in pixels after the EXIF orientation has been applied. The
# file of a photograph may store the pixels in another order.
_MASK_FIELDS = [
    pa.field("mask", pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())]), nullable=False),
    pa.field("mask_score", pa.float32(), nullable=False),
]

# Two or three numbers; the type does not say how many: pyarrow 25 cannot read a null in a list of fixed size.
_NUMBERS = pa.list_(pa.float64())

SHARD = _record(
    "shard",
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("media_type", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("site", pa.string()),
        pa.field("split", pa.string()),
        pa.field("study_id", pa.string()),
        pa.field("series_id", pa.string()),
        pa.field("instance_id", pa.string()),
        pa.field("frame", pa.int32()),
        pa.field("study_day", pa.int32()),
        pa.field("modality", pa.string()),
        pa.field("view", pa.string()),
        pa.field("laterality", pa.string()),
        pa.field("body_part", pa.string()),
        pa.field("age_band", pa.string()),
        pa.field("sex", pa.string()),
        pa.field("manufacturer", pa.string()),
        pa.field("device_model", pa.string()),
        pa.field("spacing", _NUMBERS),
        pa.field("position", _NUMBERS),
        pa.field("window", _NUMBERS),
        pa.field("pixels_sha256", pa.string()),
        pa.field("likeness", pa.string()),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ],
)

PREDICTION = _record(
    "prediction",
    [
        *_IDENTITY_FIELDS,
        pa.field("label", pa.string(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("decision", pa.string(), nullable=False),
        *_MASK_FIELDS,
        pa.field("model_version", pa.string(), nullable=False),
    ],
)

QUARANTINE = _record(
    "quarantine",
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ],
)

INDEX = _record(
    "index",
    [
        pa.field("item", pa.string(), nullable=False),
        pa.field("container", pa.string()),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("message", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("row", pa.int32()),
        pa.field("image_id", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("pixels_sha256", pa.string()),
        pa.field("likeness", pa.string()),
        pa.field("split", pa.string()),
        pa.field("first_day", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("study_id", pa.string()),
        pa.field("series_id", pa.string()),
        pa.field("instance_id", pa.string()),
        pa.field("accession", pa.string()),
        pa.field("site", pa.string()),
        pa.field("study_date", pa.int64()),
    ],
)

# Columns with few different values in a file. Digests, images and tensors are better without a dictionary.
_SHORT_COLUMNS = [
    *("label", "patient_id", "site", "split", "media_type", "study_id", "series_id", "modality", "view", "laterality"),
    *("body_part", "age_band", "sex", "manufacturer", "device_model", "stage", "error", "message", "outcome", "shard"),
    *("decision", "model_version", "model_key"),
]


def shard_table(rows: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Shard rows from the columns that are known; the other columns are null.

    Args:
        rows: values by column; those that may not be null must be there.

    Returns:
        A table of the record ``SHARD``.

    Raises:
        ValueError: a column is missing that may not be null, or one is no column of the record.
    """
    missing = [field.name for field in SHARD if field.name not in rows and not field.nullable]
    unknown = sorted(rows.keys() - set(SHARD.names))
    if missing or unknown:
        raise ValueError(f"shard rows lack the columns {missing} or have unknown ones {unknown}")
    nulls = [None] * len(rows["image_id"])
    return pa.table({name: rows.get(name, nulls) for name in SHARD.names}, schema=SHARD)


def prediction_schema(classes: Sequence[str]) -> pa.Schema:
    """Schema of a predictions file; its metadata names the classes in the order of ``probabilities``."""
    return PREDICTION.with_metadata(PREDICTION.metadata | {CLASSES_KEY: json.dumps(list(classes)).encode()})


def feature_schema(tokens: int, width: int, region: bool, augmented: int = 0) -> pa.Schema:
    """Schema of a features file.

    Args:
        tokens: number of tokens of an image, CLS first.
        width: width of a token.
        region: add ``region_tokens``, the tokens of a crop around the best region of the image, which models with
            ``focus`` ``masked_image`` or ``both`` need.
        augmented: number of augmented views of each image, which have columns of their own (``AUGMENTED``).

    Returns:
        A schema with tensors in float16: ``tokens`` and ``region_tokens`` [tokens, width], ``focus`` [tokens - 1], and
        those of augmented views with a leading axis [augmented].
    """
    shapes = {"tokens": [tokens, width], "focus": [tokens - 1]} | ({"region_tokens": [tokens, width]} if region else {})
    if augmented:
        shapes |= {AUGMENTED + name: [augmented, *shape] for name, shape in shapes.items()}
    return _record(
        "feature",
        [
            *_IDENTITY_FIELDS,
            pa.field("label", pa.string(), nullable=False),
            *_MASK_FIELDS,
            pa.field("model_key", pa.string(), nullable=False),
            *(pa.field(name, pa.fixed_shape_tensor(pa.float16(), shape), False) for name, shape in shapes.items()),
        ],
    )


def check_record(schema: pa.Schema, expected: pa.Schema, name: str) -> None:
    """Check that a file holds a record in the version that this code reads.

    Args:
        schema: schema of the file.
        expected: schema of the record, one of the above.
        name: name of the file, for the message.

    Raises:
        UsageError: the file holds another record or version, or a column is missing or has another type.
    """
    metadata = schema.metadata or {}
    record, version = metadata.get(_NAME_KEY, b"").decode(), metadata.get(_VERSION_KEY, b"").decode()
    kind = expected.metadata[_NAME_KEY].decode()
    if record != kind:
        raise UsageError(f"{name}: holds {record or 'no MedFocus'} rows, expected {kind} rows; give another path")
    if version != VERSION:
        raise UsageError(f"{name}: {kind} rows of schema version {version}, this is {VERSION}; write them again")
    for field in expected:
        if field.name not in schema.names:
            raise UsageError(f"{name}: column {field.name} is missing; write the {kind} rows again")
        if not schema.field(field.name).type.equals(field.type):
            type_in_file = schema.field(field.name).type
            raise UsageError(f"{name}: column {field.name} is {type_in_file}, expected {field.type}; write it again")


def encode(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file, so that the file can be written whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=_SHORT_COLUMNS)
    return sink.getvalue().to_pybytes()
