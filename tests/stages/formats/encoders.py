"""Encoders for tests that write what the specifications say, byte by byte, without the libraries that decode it."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

# TIFF's field types for values of 16 and 32 bits.
_SHORT, _LONG = 3, 4
# Tags (number to field type and values) and data of one image of a TIFF.
Page = tuple[dict[int, tuple[int, list[int]]], bytes]


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: np.ndarray,
    bits: int,
    *,
    palette: np.ndarray | None = None,
    trns: bytes = b"",
    chunks: Sequence[bytes] = (),
) -> bytes:
    """A PNG of unsigned samples [H, W, C] of some bits; C of 1 to 4 is grey, grey and alpha, RGB and RGBA.

    Args:
        samples: what is written, or places in the palette.
        bits: of a sample.
        palette: uint8 [colours, 3].
        trns: body of the chunk on transparency.
        chunks: further ones that come before the image data.
    """
    height, width, count = samples.shape
    colour = 3 if palette is not None else {1: 0, 2: 4, 3: 2, 4: 6}[count]
    rows = b"".join(b"\0" + packed(row, bits, ">") for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks]
    parts += [chunk(b"PLTE", palette.tobytes())] if palette is not None else []
    parts += [chunk(b"tRNS", trns)] if trns else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """Samples of one row, packed from the highest bit on to whole bytes; of 8 bits and its powers in byte order."""
    if bits in (8, 16, 32, 64, 128):
        return values.astype(values.dtype.newbyteorder(order)).tobytes()
    each = (values.reshape(-1, 1).astype(np.uint64) >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(each.astype(np.uint8)).tobytes()


def directory(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    planar: bool = False,
    tags: dict | None = None,
) -> Page:
    """Tags and data of one image of a TIFF, in one strip."""
    height, width, count = samples.shape
    strip = b"".join(packed(row, bits, order) for row in samples)
    kind = {"u": 1, "i": 2, "f": 3, "c": 6, "b": 1}[samples.dtype.kind]
    fields = {
        256: (_LONG, [width]),
        257: (_LONG, [height]),
        258: (_SHORT, [bits] * count),
        259: (_SHORT, [1]),
        262: (_SHORT, [photometric]),
        277: (_SHORT, [count]),
        278: (_LONG, [height]),
        279: (_LONG, [len(strip)]),
        284: (_SHORT, [1]),
        339: (_SHORT, [kind] * count),
    }
    return fields | (tags or {}), strip


def tiff(*pages: Page, order: str = "<") -> bytes:
    """A TIFF with a directory for each of the pages (``directory``)."""
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4
    for fields, strip in pages:
        entries, start = b"", len(out)
        out += strip + bytes(len(strip) % 2)
        for tag, (kind, values) in sorted({**fields, 273: (_LONG, [start])}.items()):
            code = {_SHORT: "H", _LONG: "I"}[kind]
            body = struct.pack(f"{order}{len(values)}{code}", *values)
            if len(body) > 4:
                body, place = b"", len(out)
                out += struct.pack(f"{order}{len(values)}{code}", *values)
                body = struct.pack(order + "I", place)
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
        out += bytes(len(out) % 2)
        struct.pack_into(order + "I", out, link, len(out))
        out += struct.pack(order + "H", len(entries) // 12) + entries
        link = len(out)
        out += bytes(4)
    return bytes(out)


def colour_map(colours: np.ndarray, bits: int) -> tuple[int, list[int]]:
    """TIFF's tag 320 of uint16 colours [n, 3]."""
    table = np.zeros((3, 2**bits), np.uint16)
    table[:, : len(colours)] = colours.T
    return _SHORT, table.ravel().tolist()


def short(*values: int) -> tuple[int, list[int]]:
    return _SHORT, list(values)


def exif(orientation: int) -> bytes:
    """An EXIF block that holds the orientation, without the prefix that JPEG puts before it."""
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)
