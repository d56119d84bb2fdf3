"""The reader of TIFF (revision 6.0) and BigTIFF: decodes the main image and interprets its samples."""

import io
import itertools
import logging
import math
import struct

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms, TiffImagePlugin
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, TiffFile, TiffPage

from medfocus.stages.formats.codec import missing_decoder
from medfocus.stages.formats.jpeg import frame_of, is_truncated
from medfocus.stages.formats.jpeg2000 import header_of
from medfocus.stages.formats.picture import ImageError, Picture, Raster, check_size, rgb_of_cmyk
from medfocus.stages.formats.pillow_image import read_image
from medfocus.stages.formats.tiff_pages import main_page

# tifffile's log may quote tags, and these may name a patient.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_ORIENTATION, _PHOTOMETRIC, _INK_SET = 274, 262, 332
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE = PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.PALETTE
# Colour samples of a pixel for each photometric interpretation that is read.
_COLOURS: dict[int, int] = {
    _WHITE_IS_ZERO: 1,
    _BLACK_IS_ZERO: 1,
    PHOTOMETRIC.MASK: 1,
    _PALETTE: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
    PHOTOMETRIC.ICCLAB: 3,
    PHOTOMETRIC.SEPARATED: 4,
}
_JPEG = {COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG, COMPRESSION.JPEG_LOSSY}
_JPEG_2000 = {COMPRESSION.JPEG2000, COMPRESSION.JPEG_2000_LOSSY, COMPRESSION.APERIO_JP2000_RGB}
# Whether imagecodecs swaps the bytes of big-endian samples of 24 bits, as release 2026.3.6 does.
_24_BITS_ARE_SWAPPED = imagecodecs.packints_decode(b"\0\0\1", np.dtype(">u4"), 24, runlen=1)[0] != 1
# Not read: jxrlib is no longer maintained, and prints a line on stderr for each unknown tag of a damaged file.
_JPEG_XR = {COMPRESSION.JPEGXR, COMPRESSION.JPEGXR_NDPI}
# Compressions whose decoders convert YCbCr to red, green and blue.
_TO_RGB = _JPEG | {COMPRESSION.WEBP, COMPRESSION.JPEGXL}


def read_tiff(content: bytes, max_pixels: int) -> Picture:
    """Decode the main image of a TIFF (``tiff_pages.main_page``).

    Args:
        content: the bytes of the file.
        max_pixels: most pixels that may be decoded.

    Raises:
        ImageError: Undecodable, Truncated, Unsupported, MissingDecoder, TooManyPixels, ManyFrames, NotFinite or
            NothingShown.
    """
    try:
        page = main_page(TiffFile(io.BytesIO(content)))
        if page is None:
            raise _damaged_header(content)
        _check_page(page, max_pixels)
        needs_libtiff = _photometric(page) == PHOTOMETRIC.YCBCR and page.compression not in _TO_RGB
        if not needs_libtiff:
            _check_segments(page, content, max_pixels)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # tifffile raises errors of any class on damaged bytes
        raise _damaged_header(content) from error
    return (
        _read_by_libtiff(content, page, max_pixels)
        if needs_libtiff
        else _to_raster(page, _decode_page(page, content)).to_picture()
    )


def _damaged_header(content: bytes) -> ImageError:
    """The error of a file without a readable directory: Truncated where the directory lies after the end."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    try:
        (first,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    except struct.error:
        first = len(content)
    if first >= len(content):
        return ImageError("Truncated", "the TIFF is truncated: it ends before its first directory")
    return ImageError("Undecodable", "the TIFF's directory of tags is damaged: it describes no image that can be read")


def _photometric(page: TiffPage) -> int:
    """The photometric interpretation; where the tag is missing, the one that libtiff assumes."""
    if _PHOTOMETRIC in page.tags or page.compression == COMPRESSION.OJPEG:
        return page.photometric
    if page.samplesperpixel >= 3:
        return PHOTOMETRIC.RGB
    fax = page.compression in (COMPRESSION.CCITTRLE, COMPRESSION.CCITTFAX3, COMPRESSION.CCITTFAX4)
    return _WHITE_IS_ZERO if fax else _BLACK_IS_ZERO


def _check_page(page: TiffPage, max_pixels: int) -> None:
    """Raise ImageError where an image is too large, or of a kind that is not read."""
    size = page.dtype.itemsize if page.dtype is not None else 1
    check_size(page.imagewidth, page.imagelength, max_pixels, page.samplesperpixel * size)
    photometric = _photometric(page)
    if photometric not in _COLOURS:
        raise _unsupported(f"of colours that are {_name(PHOTOMETRIC, photometric)}")
    if page.tags.valueof(_INK_SET, 1) != 1 and photometric == PHOTOMETRIC.SEPARATED:
        raise _unsupported("of inks other than CMYK")
    if page.samplesperpixel < _COLOURS[photometric]:
        colours = _name(PHOTOMETRIC, photometric)
        raise ImageError("Undecodable", f"the TIFF has {page.samplesperpixel} samples a pixel, too few for {colours}")
    if page.sampleformat in (5, 6) or (page.dtype is not None and page.dtype.kind == "c"):
        raise _unsupported("of complex numbers")
    if page.dtype is None or not isinstance(page.bitspersample, int):
        raise _unsupported(f"of samples of {page.bitspersample} bits in format {page.sampleformat}")
    if page.bitspersample == 24 and page.predictor != 1:
        raise _unsupported("of 24 bits with a predictor")
    if page.compression == COMPRESSION.APERIO_JP2000_YCBC:
        raise _unsupported("compressed with Aperio's JPEG 2000 of YCbCr")
    if page.compression in _JPEG_XR or page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise _unsupported(f"compressed with {_name(COMPRESSION, page.compression)}")


def _unsupported(what: str) -> ImageError:
    return ImageError("Unsupported", f"a TIFF {what} is not read; convert it to PNG or another TIFF")


def _name(kind: type, value: int) -> str:
    """The name of a value of an enumeration of tifffile, for messages."""
    return str(kind(value).name) if value in set(kind) else f"of the unknown code {value}"  # type: ignore[call-overload]


def _check_segments(page: TiffPage, content: bytes, max_pixels: int) -> None:
    """Raise ImageError where strips or tiles are missing, lie after the end of the file, or hold too large an image."""
    count = math.prod(page.chunked)
    segments = list(itertools.islice(zip(page.dataoffsets, page.databytecounts, strict=False), count))
    absent = count - sum(1 for offset, length in segments if offset and length)
    if absent:
        raise ImageError("Undecodable", f"the TIFF is incomplete: {absent} of {count} strips or tiles hold no data")
    if page.compression != COMPRESSION.NONE and any(offset + length > len(content) for offset, length in segments):
        raise _truncated()
    if page.compression not in _JPEG | _JPEG_2000:
        return
    for offset, length in segments:
        data = content[offset : offset + length]
        if page.compression in _JPEG_2000:
            header = header_of(data)
            check_size(header.width, header.height, max_pixels)
        elif frame := frame_of(data):
            check_size(frame.width, frame.height, max_pixels)
        if page.compression == COMPRESSION.JPEG and is_truncated(data):
            raise ImageError("Truncated", "the JPEG data in the TIFF are truncated")


def _truncated() -> ImageError:
    return ImageError("Truncated", "the TIFF is truncated: its image data end behind the end of the file")


def _decode_page(page: TiffPage, content: bytes) -> np.ndarray:
    """Decode the samples of a page, [H, W, samples of a pixel], in native byte order."""
    try:
        samples = page.asarray(squeeze=False, maxworkers=1)
    except imagecodecs.DelayedImportError as error:
        raise missing_decoder(_name(COMPRESSION, page.compression)) from error
    except MemoryError:
        raise
    except Exception as error:
        if page.dataoffsets[-1] + page.databytecounts[-1] > len(content) or _uncompressed_size(page) > len(content):
            raise _truncated() from error
        what = _name(COMPRESSION, page.compression)
        raise ImageError("Undecodable", f"the image data are damaged ({what}: {type(error).__name__})") from error
    samples = samples[:, 0]  # [separate samples, height, width, interleaved samples]
    samples = samples[0] if samples.shape[0] == 1 else np.moveaxis(samples[..., 0], 0, 2)
    if page.bitspersample == 24 and samples.dtype.kind == "u" and page.parent.byteorder == ">":
        return samples.byteswap() if _24_BITS_ARE_SWAPPED else samples
    if samples.dtype.isnative:
        return samples
    return samples.byteswap(inplace=samples.flags.writeable).view(samples.dtype.newbyteorder("="))


def _uncompressed_size(page: TiffPage) -> int:
    """Bytes of the samples of a page without compression."""
    assert isinstance(page.bitspersample, int)
    return page.imagewidth * page.imagelength * page.samplesperpixel * page.bitspersample // 8


def _to_raster(page: TiffPage, samples: np.ndarray) -> Raster:
    """Interpret the samples [H, W, samples of a pixel] of a page."""
    photometric, bits = _photometric(page), page.bitspersample
    assert isinstance(bits, int)
    samples = samples.view(np.uint8) if samples.dtype == bool else samples
    full = 2**bits - 1 if samples.dtype.kind == "u" else None
    colours = samples[..., : _COLOURS[photometric]]
    alpha, premultiplied = None, False
    for place, kind in enumerate(page.extrasamples):
        if kind in (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA):
            alpha, premultiplied = samples[..., _COLOURS[photometric] + place], kind == EXTRASAMPLE.ASSOCALPHA
            break
    opaque = full or (np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else 1.0)
    if photometric == _PALETTE:
        colours, full = _palette_colours(page, colours[..., 0]), 255
    elif photometric in (PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB):
        colours, full = _rgb_of_lab(colours, signed=photometric == PHOTOMETRIC.CIELAB), 255
    elif photometric == PHOTOMETRIC.SEPARATED:
        if full is None:
            raise _unsupported("of CMYK that is signed or floating-point")
        colours = rgb_of_cmyk(colours, full)
    return Raster(
        samples=colours,
        full=full if full is not None and full <= 255 else None,
        alpha=alpha,
        opaque=opaque,
        premultiplied=premultiplied,
        white_is_zero=photometric == _WHITE_IS_ZERO,
        orientation=_orientation(page),
    )


def _orientation(page: TiffPage) -> int:
    """The orientation of a page, 1 to 8; 1 where the tag is missing or wrong."""
    value = page.tags.valueof(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _palette_colours(page: TiffPage, places: np.ndarray) -> np.ndarray:
    """Look up colours in the colour map of a page, whose values have 16 bits (8 bits from some writers).

    Args:
        page: the page.
        places: unsigned [H, W], indices into the colour map.

    Returns:
        Uint8 [H, W, 3].
    """
    colours = page.colormap
    if colours is None or places.dtype.kind != "u":
        raise ImageError("Undecodable", "the TIFF has a palette without a colour map")
    if places.size and int(places.max()) >= colours.shape[1]:
        raise ImageError("Undecodable", "the TIFF has samples outside of its colour map")
    table: np.ndarray = (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)
    pixels: np.ndarray = table.T[places]
    return pixels


def _rgb_of_lab(samples: np.ndarray, *, signed: bool) -> np.ndarray:
    """Convert CIE L*a*b* (D50) to sRGB.

    Args:
        samples: uint8 or uint16 [H, W, 3].
        signed: whether a* and b* are signed; otherwise they have an offset of half the range.

    Returns:
        Uint8 [H, W, 3].
    """
    if samples.dtype not in (np.uint8, np.uint16):
        raise _unsupported("of L*a*b* in other than 8 or 16 bits")
    lab = (samples >> (8 * (samples.dtype.itemsize - 1))).astype(np.uint8)
    if not signed:  # Pillow takes a* and b* as signed
        lab[..., 1:] ^= 0x80
    image = Image.frombytes("LAB", lab.shape[1::-1], lab.tobytes())
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    return np.asarray(converted)


def _read_by_libtiff(content: bytes, page: TiffPage, max_pixels: int) -> Picture:
    """Decode YCbCr that is not JPEG-compressed with Pillow, which uses libtiff and applies the orientation itself."""
    if page.is_subifd:
        raise _unsupported("of YCbCr in a sub-directory")

    def plugin(stream: io.BytesIO) -> TiffImagePlugin.TiffImageFile:
        image = TiffImagePlugin.TiffImageFile(stream)
        image.seek(page.index)
        return image

    return read_image(content, "TIFF", plugin, max_pixels, single=True)
