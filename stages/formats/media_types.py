"""The media type of a file, from its first bytes alone."""

import re
import struct

# Media types that the decode stage reads. CODESTREAM is a JPEG 2000 without the boxes of a file.
PNG, JPEG, TIFF, BMP = "image/png", "image/jpeg", "image/tiff", "image/bmp"
WEBP, GIF, JPEG2000, CODESTREAM = "image/webp", "image/gif", "image/jp2", "image/j2c"
HEIC, JPEG_XL = "image/heic", "image/jxl"

NOT_READ = {
    "image/avif": "AVIF",
    "image/jxr": "JPEG XR",
    "image/vnd.adobe.photoshop": "Photoshop",
    "image/x-exr": "OpenEXR",
    "image/x-portable-anymap": "PNM",
    "image/vnd.ms-dds": "DDS",
}
"""Media types that the decode stage refuses, with the name that the message gives them."""

_SIGNATURES = [
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0\x08\0\0\0", TIFF),
    (b"MM\0+\0\x08\0\0", TIFF),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"\0\0\0\x0cjP  \r\n\x87\n", JPEG2000),
    (b"\xff\x4f\xff\x51", CODESTREAM),
    (b"\0\0\0\x0cJXL \r\n\x87\n", JPEG_XL),
    (b"\xff\x0a", JPEG_XL),
    (b"II\xbc\x01", "image/jxr"),
    (b"8BPS\0\x01", "image/vnd.adobe.photoshop"),
    (b"8BPS\0\x02", "image/vnd.adobe.photoshop"),
    (b"\x76\x2f\x31\x01", "image/x-exr"),
    (b"DDS \x7c\0\0\0", "image/vnd.ms-dds"),
]

# Brands of ISO base media files (the four bytes after "ftyp") that hold a still image.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx"), HEIC),
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
}

# Other files that often lie beside images: offset and bytes of the signature, and the name for a message.
_OTHERS = [
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"NRRD0", "an NRRD volume"),
    (128, b"DICM", "a DICOM file"),
    (344, b"n+1\0", "a NIfTI volume"),
    (344, b"ni1\0", "a NIfTI header"),
    (4, b"n+2\0", "a NIfTI volume"),
    (4, b"ni2\0", "a NIfTI header"),
    (0, b"\x5c\x01\0\0", "a header of NIfTI or Analyze"),
    (0, b"\0\0\x01\x5c", "a header of NIfTI or Analyze"),
    (0, b"\0\0\x01\0", "a Windows icon"),
    (0, b"icns", "an Apple icon"),
    (0, b"\x01\xda", "an SGI image"),
    (0, b"BLP1", "a BLP texture"),
    (0, b"BLP2", "a BLP texture"),
    (4, b"\x11\xaf", "a FLI animation"),
    (4, b"\x12\xaf", "a FLC animation"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML file"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<html", "an HTML page"),
]

_PNM = re.compile(rb"P[1-6](\s+\d|\s*#)")

# Sizes of the header after the first 14 bytes of a BMP. A DIB begins with this header.
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}


def media_type_of(content: bytes) -> str | None:
    """The media type of an image.

    MPO (a JPEG of a phone that holds further pictures) and JPEG-LS are image/jpeg. A DIB (a BMP without its first 14
    bytes) is image/bmp. BigTIFF is image/tiff.

    Args:
        content: the bytes of the file, or its first 64.

    Returns:
        A media type that the decode stage reads, or one that it refuses (``NOT_READ``); None where the bytes are not a
        known kind of image.
    """
    for signature, media_type in _SIGNATURES:
        if content.startswith(signature):
            return media_type
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return WEBP
    if content[4:8] == b"ftyp":
        return _BRANDS.get(bytes(content[8:12]))
    if _PNM.match(content):
        return "image/x-portable-anymap"
    return BMP if _is_bmp(content) or is_dib(content) else None


def is_dib(content: bytes) -> bool:
    """Whether the bytes are a BMP without its first 14 bytes: a consistent header of 40 bytes or more."""
    if len(content) < 40:
        return False
    header, _, _, planes, bits, compression = struct.unpack("<IiiHHI", content[:20])
    return header in _BMP_HEADERS - {12, 16} and planes == 1 and bits in (1, 4, 8, 16, 24, 32) and compression <= 6


def other_kind_of(content: bytes) -> str | None:
    """The name, with its article, of another kind of file (a PDF, a DICOM file); None where it is not known."""
    for offset, signature, name in _OTHERS:
        if content[offset : offset + len(signature)] == signature:
            return name
    return None


def _is_bmp(content: bytes) -> bool:
    """Whether the bytes begin with the two headers of a BMP."""
    return content[:2] == b"BM" and len(content) >= 18 and struct.unpack("<I", content[14:18])[0] in _BMP_HEADERS
