"""TIFF files of every depth, colour space, compression and number of images."""

import io
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

from tests.stages.formats import viewer
from tests.stages.formats.cases import COLOUR, GREY, SHARE, VALUE, WINDOW, Case, Pictures, deep, pictures, shallow
from tests.stages.formats.encoders import colour_map, directory, save, short, tiff

NONE: Pictures = (None, None)


def tiff_cases() -> Iterator[Case]:
    for group in (_grey, _colour, _other_colours, _compressions, _not_read, _several_images):
        yield from group()


def _tiff(
    name: str,
    samples: np.ndarray,
    bits: int,
    photometric: int,
    label: str,
    shown: Pictures,
    wanted: str,
    tolerance: float = 0.5,
    *,
    tags: dict | None = None,
    order: str = "<",
) -> Case:
    content = tiff(directory(samples, bits, photometric, order=order, tags=tags), order=order)
    return Case("TIFF", name, label, content, shown, wanted, tolerance)


def _label(kind: str) -> str:
    bits = np.dtype(kind).itemsize * 8
    return {"u": f"{bits} bit", "i": f"signed {bits} bit", "f": f"float{bits}", "c": f"complex{bits}"}[kind[0]]


def _grey() -> Iterator[Case]:
    for name, photometric in (("grey", 1), ("grey, white is zero", 0)):
        for order in "<>":
            for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16):
                samples = shallow(GREY * (0.2 if bits > 8 else 1), bits)
                stored = samples if photometric else 2**bits - 1 - samples
                shown, wanted = pictures(samples, 2**bits - 1), VALUE if bits <= 8 else WINDOW
                yield _tiff(name, stored, bits, photometric, f"{bits} bit", shown, wanted, order=order)
            for bits, kind in ((24, "u4"), (32, "u4"), (64, "u8")):
                samples = (deep(GREY, "u4") >> (8 if bits == 24 else 0)).astype(np.uint64)
                stored = (samples if photometric else 2**bits - 1 - samples).astype(kind)
                shown = pictures(samples, 2.0**bits)
                yield _tiff(name, stored, bits, photometric, f"{bits} bit", shown, WINDOW, order=order)
            for kind in ("i1", "i2", "i4", "f2", "f4", "f8"):
                samples, bits = deep(GREY, kind), np.dtype(kind).itemsize * 8
                stored = samples if photometric else -samples if kind[0] == "f" else ~samples
                yield _tiff(name, stored, bits, photometric, _label(kind), pictures(samples, None), WINDOW, order=order)
    holes = deep(GREY, "f4")
    holes[:9], holes[30, 30], holes[30, 31] = np.nan, np.inf, -np.inf
    shown = pictures(holes, None)
    yield _tiff("grey with NaN (black) and infinite values", holes, 32, 1, "float32", shown, WINDOW)
    yield _tiff("grey, nothing but NaN", holes * np.nan, 32, 1, "float32", NONE, "NotFinite")


def _colour() -> Iterator[Case]:
    for kind in ("u1", "u2", "u4", "i2", "f2", "f4", "f8"):
        bits, label = np.dtype(kind).itemsize * 8, _label(kind)
        full = float(2**bits - 1) if kind[0] == "u" else None
        opaque = full or (2.0 ** (bits - 1) - 1 if kind[0] == "i" else 1.0)
        wanted = VALUE if kind == "u1" else WINDOW
        alpha = (SHARE * opaque).astype(kind)
        share = alpha.astype(float) / opaque
        for name, photometric, picture in (("grey", 1, GREY), ("RGB", 2, COLOUR)):
            samples = shallow(picture, 8) if kind == "u1" else deep(picture, kind)
            plain, shown = pictures(samples, full), pictures(samples, full, share)
            if name == "RGB":
                yield _tiff(name, samples, bits, 2, label, plain, wanted)
            stored, tags = np.dstack([samples, alpha]), {338: short(2)}
            yield _tiff(f"{name} with alpha", stored, bits, photometric, label, shown, wanted, tags=tags)
            if kind in ("u1", "u2", "f4"):
                laid = (samples * share[..., None]).astype(float)
                laid = (laid if kind == "f4" else np.round(laid)).astype(kind)
                laid[share == 0] = samples[share == 0]  # what is under full transparency may be anything
                stored, tags = np.dstack([laid, alpha]), {338: short(1)}
                premultiplied = f"{name} with premultiplied alpha"
                yield _tiff(premultiplied, stored, bits, photometric, label, shown, wanted, 0.6, tags=tags)
            further = (samples[..., :1] / 2).astype(kind)
            stored, tags = np.dstack([samples, further, further]), {338: short(0, 0)}
            left_out = f"{name} with further channels, which are left out"
            yield _tiff(left_out, stored, bits, photometric, label, plain, wanted, tags=tags)


def _other_colours() -> Iterator[Case]:
    for bits in (1, 4, 8):
        places = np.round(GREY * (2**bits - 1)).astype(np.uint8)
        for name, top in (("palette", 65536), ("palette of an 8-bit colour map", 256)):
            colours = np.random.default_rng(bits).integers(0, top, (2**bits, 3)).astype(np.uint16)
            colours[0] = top - 1
            shown = pictures((colours if top == 256 else colours >> 8)[places[..., 0]], 255)
            tags = {320: colour_map(colours, bits)}
            yield _tiff(name, places, bits, 3, f"{bits} bit", shown, VALUE, tags=tags)
    for bits, kind in ((8, "u1"), (16, "u2")):
        full = 2**bits - 1
        inks = (np.dstack([1 - COLOUR, 0.3 * GREY]) * full).round().astype(kind)
        colours = (full - inks[..., :3].astype(float)) * (full - inks[..., 3:].astype(float)) / full
        yield _tiff("CMYK", inks, bits, 5, _label(kind), pictures(colours, full), VALUE if bits == 8 else WINDOW)
        lab = np.dstack([20 + 60 * COLOUR[..., :1], 80 * COLOUR[..., 1:] - 40])
        shown = viewer.on_black(viewer.rgb_of_lab(lab)), None
        scale = np.array([full / 100, 2 ** (bits - 8), 2 ** (bits - 8)])
        stored = np.round(lab * scale).astype(np.int64).astype(kind)
        yield _tiff("CIE L*a*b*", stored, bits, 8, _label(kind), shown, VALUE, 1.5)
        offset = np.array([0.0, 2 ** (bits - 1), 2 ** (bits - 1)])
        scale[0] = full / 100 if bits == 8 else 0xFF00 / 100
        stored = np.round(lab * scale + offset).astype(kind)
        yield _tiff("ICC L*a*b*", stored, bits, 9, _label(kind), shown, VALUE, 1.5)
    colour = shallow(COLOUR, 8)
    shown = pictures(colour, 255)
    stored = np.asarray(Image.fromarray(colour).convert("YCbCr"))
    yield _tiff("YCbCr, not subsampled", stored, 8, 6, "8 bit", shown, VALUE, 1.5, tags={530: short(1, 1)})


def _compressions() -> Iterator[Case]:
    grey, colour, two = deep(GREY, "u2"), shallow(COLOUR, 8), 255 * (shallow(GREY, 8) > 100)
    lossless: dict[str, dict[str, object]] = {"jpeg2000": {"level": 0}, "jpegxl": {"lossless": True}}
    lossless |= {name: {} for name in ("packbits", "lzw", "zlib", "zstd", "lzma", "png", "lerc")}
    for name, options in lossless.items():
        given = {"compression": name, "compressionargs": dict(options)}  # which tifffile adds to
        content = written(grey[..., 0], photometric="minisblack", **given)
        yield Case(f"TIFF, {name.upper()}", "grey", "16 bit", content, pictures(grey, 65535), WINDOW)
    for name, options in {**lossless, "webp": {"lossless": True}}.items():
        content = written(colour, compression=name, compressionargs=dict(options), photometric="rgb")
        yield Case(f"TIFF, {name.upper()}", "RGB", "8 bit", content, pictures(colour, 255), VALUE)
    options = {"compression": "jpeg", "compressionargs": {"level": 98}, "subsampling": (1, 1)}
    content = written(colour, photometric="rgb", **options)
    yield Case("TIFF, JPEG", "YCbCr", "8 bit", content, pictures(colour, 255), VALUE, 1.5)
    for name, label in (("tiff_ccitt", "CCITT RLE"), ("group3", "CCITT group 3"), ("group4", "CCITT group 4")):
        content = save(Image.fromarray(two[..., 0] > 0), "TIFF", compression=name)
        yield Case(f"TIFF, {label}", "grey", "1 bit", content, pictures(two, 255), VALUE)


def _not_read() -> Iterator[Case]:
    grey = shallow(GREY, 8)
    for kind in ("c8", "c16"):
        bits = np.dtype(kind).itemsize * 8
        yield _tiff("grey", GREY.astype(kind), bits, 1, _label(kind), NONE, "Unsupported")
    for name, code in (("JBIG", 34661), ("PixarLog", 32909), ("JPEG XR", 34934)):
        yield _tiff(f"compressed with {name}", grey, 8, 1, "any", NONE, "Unsupported", tags={259: short(code)})
    for name, photometric, count in (("raw sensor (DNG)", 32803, 1), ("LogL", 32844, 1), ("LogLuv", 32845, 3)):
        yield _tiff(name, deep(COLOUR[..., :count], "u2"), 16, photometric, "any", NONE, "Unsupported")
    inks = shallow(np.dstack([COLOUR, GREY]), 8)
    yield _tiff("inks other than CMYK", inks, 8, 5, "any", NONE, "Unsupported", tags={332: short(2)})


def _several_images() -> Iterator[Case]:
    samples = deep(GREY, "u2")
    main, equal = directory(samples, 16, 1), directory(samples[::-1], 16, 1)
    half, small = directory(samples[::2, ::2], 16, 1), directory(samples[::4, ::4], 16, 1)
    reduced = directory(samples[::4, ::4], 16, 1, tags={254: short(1)})
    for name, pages in {
        "with a reduced image behind it": [main, reduced],
        "with a reduced image before it": [reduced, main],
        "with a reduced image of the old tag": [main, directory(samples[::4, ::4], 16, 1, tags={255: short(2)})],
        "with a mask": [main, directory(samples >> 9, 16, 4, tags={254: short(4)})],
        "with a thumbnail that is not marked": [small, main],
        "with a pyramid that is not marked": [main, half, small],
    }.items():
        yield Case(f"TIFF {name}: its main image", "any", "any", tiff(*pages), pictures(samples, 65535), WINDOW)
    yield Case("TIFF of several images", "any", "any", tiff(main, equal), NONE, "ManyFrames")
    other = directory(samples[:40, :50], 16, 1)
    yield Case("TIFF of several images of different sizes", "any", "any", tiff(main, other), NONE, "ManyFrames")
    stack = np.stack([samples[..., 0], samples[::-1, :, 0]])
    yield Case("TIFF, a stack of ImageJ", "any", "any", written(stack, imagej=True), NONE, "ManyFrames")


def written(samples: np.ndarray, **options: object) -> bytes:
    """A TIFF of tifffile's."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)  # type: ignore[arg-type]
    return buffer.getvalue()
