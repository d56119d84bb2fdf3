"""Record schemas: the columns of shard rows, feature rows, prediction rows and quarantine rows.

The name and the version of a record stand in the Parquet metadata. A reader refuses other records and versions.
"""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.errors import UsageError

VERSION = "1"
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
]

# The focus mask of an image in COCO's run-length encoding, and the rank score of its best region. The mask fits the
# image as a viewer shows it: ``size`` is height and width in pixels after the EXIF orientation has been applied. The
# file of a photograph may store the pixels in another order.
_MASK_FIELDS = [
    pa.field("mask", pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())]), nullable=False),
    pa.field("mask_score", pa.float32(), nullable=False),
]

SHARD = _record(
    "shard",
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("media_type", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("site", pa.string()),
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
    pq.write_table(table, sink, compression="zstd", use_dictionary=["label", "site", "media_type"])
    return sink.getvalue().to_pybytes()
