"""Record schemas: what a shard row, a feature row, a prediction and a quarantined row are.

The name and version of a schema travel in the Parquet metadata; a reader refuses what it does not know.
"""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from medfocus.pipeline.errors import UsageError

VERSION = "1"
CLASSES_KEY = b"medfocus.classes"
# Before the name of a column of feature rows: the same of augmented views.
AUGMENTED = "augmented_"
_NAME_KEY, _VERSION_KEY = b"medfocus.record", b"medfocus.version"


def _record(name: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={_NAME_KEY: name.encode(), _VERSION_KEY: VERSION.encode()})


_WHO = [
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("patient_id", pa.string()),
    pa.field("site", pa.string()),
]

# What was found in an image: its focus mask in COCO's run-length code, and the rank score of its best region. The mask
# belongs to the upright image: ``size`` is height and width in pixels after the EXIF orientation has been applied, so a
# mask lies on what a viewer shows, which for a photograph of a phone is not the order of the pixels in the file.
_FOUND = [
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
        *_WHO,
        pa.field("label", pa.string(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("decision", pa.string(), nullable=False),
        *_FOUND,
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
    """Schema of a file of predictions; its metadata names the classes in the order of ``probabilities``."""
    return PREDICTION.with_metadata(PREDICTION.metadata | {CLASSES_KEY: json.dumps(list(classes)).encode()})


def feature_schema(tokens: int, width: int, region: bool, augmented: int = 0) -> pa.Schema:
    """Schema of feature rows of a tower with ``tokens`` tokens (CLS first) of ``width``.

    ``region_tokens`` holds the tokens of a crop about the image's best region; it is there when the model's ``focus``
    is ``masked_image`` or ``both``. A number of augmented views of the image is kept in columns of their own.
    """
    shapes = {"tokens": [tokens, width], "focus": [tokens - 1]} | ({"region_tokens": [tokens, width]} if region else {})
    if augmented:
        shapes |= {AUGMENTED + name: [augmented, *shape] for name, shape in shapes.items()}
    return _record(
        "feature",
        [
            *_WHO,
            pa.field("label", pa.string(), nullable=False),
            *_FOUND,
            pa.field("model_key", pa.string(), nullable=False),
            *(pa.field(name, pa.fixed_shape_tensor(pa.float16(), shape), False) for name, shape in shapes.items()),
        ],
    )


def check_record(schema: pa.Schema, expected: pa.Schema, name: str) -> None:
    """Raise UsageError unless a file's schema is the expected record in a version this code reads.

    Args:
        schema: what the file has.
        expected: one of the schemas above.
        name: of the file, for the message.
    """
    metadata = schema.metadata or {}
    record, version = metadata.get(_NAME_KEY, b"").decode(), metadata.get(_VERSION_KEY, b"").decode()
    wanted = expected.metadata[_NAME_KEY].decode()
    if record != wanted:
        raise UsageError(f"{name}: holds {record or 'no MedFocus'} rows, expected {wanted} rows; give another path")
    if version != VERSION:
        raise UsageError(f"{name}: {wanted} rows of schema version {version}, this is {VERSION}; write them again")
    for field in expected:
        if field.name not in schema.names:
            raise UsageError(f"{name}: column {field.name} is missing; write the {wanted} rows again")
        if not schema.field(field.name).type.equals(field.type):
            found = schema.field(field.name).type
            raise UsageError(f"{name}: column {field.name} is {found}, expected {field.type}; write it again")


def encode(table: pa.Table) -> bytes:
    """A table as one Parquet file in memory, so that a file is written whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["label", "site", "media_type"])
    return sink.getvalue().to_pybytes()
