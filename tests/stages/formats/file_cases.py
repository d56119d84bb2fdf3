"""Files of every container, depth and colour space (those of TIFF in ``tiff_cases``)."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from tests.stages.formats.cases import COLOUR, GREY, SHARE, VALUE, WINDOW, Case, deep, pictures, shallow
from tests.stages.formats.encoders import chunk, png, save
from tests.stages.formats.tiff_cases import NONE, tiff_cases


def cases() -> Iterator[Case]:
    for group in (_png, _jpeg, _mpo_and_jpeg_ls, tiff_cases, _bitmaps, _webp_and_gif, _jpeg_2000, _jpeg_xl, _heic):
        yield from group()
    for group in (_animations, _unusual, _not_read):
        yield from group()


def _png() -> Iterator[Case]:
    for bits in (1, 2, 4, 8):
        label, samples = f"{bits} bit", shallow(GREY, bits)
        yield Case("PNG", "grey", label, png(samples, bits), pictures(samples, 2**bits - 1), VALUE)
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
        colours = palette[samples[..., 0]]
        content = png(samples, bits, palette=palette)
        yield Case("PNG", "palette", label, content, pictures(colours, 255), VALUE)
        trns = np.linspace(255, 0, 2**bits).astype(np.uint8)
        content = png(samples, bits, palette=palette, trns=trns.tobytes())
        shown = pictures(colours, 255, trns[samples[..., 0]] / 255)
        yield Case("PNG", "palette with transparency", label, content, shown, VALUE)
    for bits, wanted in ((8, VALUE), (16, WINDOW)):
        for name, picture in (("grey", GREY), ("RGB", COLOUR)):
            samples, full = shallow(picture, 8) if bits == 8 else deep(picture, "u2"), 2**bits - 1
            label = f"{bits} bit"
            if (name, bits) != ("grey", 8):
                yield Case("PNG", name, label, png(samples, bits), pictures(samples, full), wanted)
            alpha = np.round(SHARE * full)
            content = png(np.dstack([samples, alpha]).astype(samples.dtype), bits)
            yield Case("PNG", f"{name} with alpha", label, content, pictures(samples, full, alpha / full), wanted)
            key = samples[20, 30]
            content = png(samples, bits, trns=key.astype(">u2").tobytes())
            shown = pictures(samples, full, 1.0 * (samples != key).any(2))
            yield Case("PNG", f"{name} with a transparent colour", label, content, shown, wanted)


def _jpeg() -> Iterator[Case]:
    grey, colour = shallow(GREY, 8), shallow(COLOUR, 8)
    best = {"quality": 98, "subsampling": 0}
    for container, progressive in (("JPEG", False), ("JPEG, progressive", True)):
        for name, samples in (("grey", grey), ("YCbCr", colour)):
            content = save(Image.fromarray(samples.squeeze()), "JPEG", **best, progressive=progressive)
            yield Case(container, name, "8 bit", content, pictures(samples, 255), VALUE, 1.5)
    inks = 255 - np.dstack([colour, np.full_like(grey, 220)])  # a little black ink everywhere
    shown = pictures((255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255, 255)
    content = save(Image.fromarray(inks, "CMYK"), "JPEG", **best)
    yield Case("JPEG", "CMYK (inverted, as Adobe's)", "8 bit", content, shown, VALUE, 2)
    inverted = {"colorspace": "CMYK", "outcolorspace": "YCCK", "subsampling": "444"}
    content = imagecodecs.jpeg8_encode(255 - inks, level=98, **inverted)
    yield Case("JPEG", "YCCK", "8 bit", content, shown, VALUE, 2)
    for name, picture in (("grey", GREY), ("YCbCr", COLOUR)):
        samples = np.round(picture * 3000 + 200).astype(np.uint16)
        content = imagecodecs.jpeg8_encode(samples.squeeze(), level=99, bitspersample=12, subsampling="444")
        yield Case("JPEG", name, "12 bit", content, pictures(samples, 4095), WINDOW, 1.5)
    samples = deep(GREY, "u2")
    content = imagecodecs.jpeg8_encode(samples[..., 0], lossless=True, bitspersample=16)
    yield Case("JPEG, lossless", "grey", "16 bit", content, pictures(samples, 65535), WINDOW)


def _mpo_and_jpeg_ls() -> Iterator[Case]:
    grey, colour, deeper = shallow(GREY, 8), shallow(COLOUR, 8), deep(GREY, "u2")
    second = {"save_all": True, "append_images": [Image.fromarray(255 - colour)]}
    content = save(Image.fromarray(colour), "MPO", quality=98, subsampling=0, **second)
    yield Case("MPO (its first picture)", "YCbCr", "8 bit", content, pictures(colour, 255), VALUE, 1.5)
    for name, bits, samples in (
        ("grey", 8, grey),
        ("RGB", 8, colour),
        ("grey", 12, deeper - 500),
        ("grey", 16, deeper * 9),
    ):
        content = imagecodecs.jpegls_encode(samples.squeeze())
        wanted = VALUE if bits == 8 else WINDOW
        yield Case("JPEG-LS", name, f"{bits} bit", content, pictures(samples, 2**bits - 1), wanted)


def _bitmaps() -> Iterator[Case]:
    grey, colour = shallow(GREY, 8), shallow(COLOUR, 8)
    two, palette = 255 * (grey > 100), Image.fromarray(colour).quantize(200)
    of_palette = pictures(np.asarray(palette.convert("RGB")), 255)
    for kind in ("BMP", "DIB"):
        yield Case(kind, "grey", "1 bit", save(Image.fromarray(two[..., 0] > 0), kind), pictures(two, 255), VALUE)
        yield Case(kind, "grey", "8 bit", save(Image.fromarray(grey[..., 0]), kind), pictures(grey, 255), VALUE)
        yield Case(kind, "palette", "8 bit", save(palette, kind), of_palette, VALUE)
        yield Case(kind, "RGB", "8 bit", save(Image.fromarray(colour), kind), pictures(colour, 255), VALUE)
    alpha = np.round(SHARE * 255).astype(np.uint8)
    content = _bmp_with_alpha(np.dstack([colour, alpha]))
    yield Case("BMP", "RGB with alpha", "8 bit", content, pictures(colour, 255, alpha / 255), VALUE)


def _bmp_with_alpha(samples: np.ndarray) -> bytes:
    """A BMP of 32 bits with masks for each channel (BITMAPV4HEADER), from the bottom row up."""
    height, width = samples.shape[:2]
    body = samples[::-1, :, [2, 1, 0, 3]].tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(body), 2835, 2835, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body


def _webp_and_gif() -> Iterator[Case]:
    colour, alpha = shallow(COLOUR, 8), np.round(SHARE * 255).astype(np.uint8)
    layered = np.dstack([colour, alpha])
    for name, samples, share in (("RGB", colour, None), ("RGB with alpha", layered, alpha / 255)):
        content = save(Image.fromarray(samples), "WEBP", lossless=True, exact=True)
        yield Case("WebP", name, "8 bit", content, pictures(colour, 255, share), VALUE)
    content = save(Image.fromarray(colour), "WEBP", quality=100)
    yield Case("WebP, lossy", "RGB", "8 bit", content, pictures(colour, 255), VALUE, 3)
    palette = Image.fromarray(colour).quantize(200)
    places, of_palette = np.asarray(palette), np.asarray(palette.convert("RGB"))
    yield Case("GIF", "palette", "8 bit", save(palette, "GIF"), pictures(of_palette, 255), VALUE)
    key = int(places[20, 30])
    shown = pictures(of_palette, 255, 1.0 * (places != key))
    yield Case("GIF", "palette with transparency", "8 bit", save(palette, "GIF", transparency=key), shown, VALUE)


def _jpeg_2000() -> Iterator[Case]:
    for container, codec in (("JPEG 2000 (JP2)", "jp2"), ("JPEG 2000 codestream", "j2k")):
        for bits in (8, 9, 12, 16):
            label, wanted, full = f"{bits} bit", VALUE if bits == 8 else WINDOW, 2**bits - 1
            alpha = np.round(SHARE * full).astype(np.uint8 if bits == 8 else np.uint16)
            options = {"level": 0, "codecformat": codec, "bitspersample": bits}
            for name, picture in (("grey", GREY), ("RGB", COLOUR)):
                samples = shallow(picture * (0.2 if bits > 8 else 1), bits)
                content = imagecodecs.jpeg2k_encode(samples.squeeze(), **options)
                yield Case(container, name, label, content, pictures(samples, full), wanted)
                content = imagecodecs.jpeg2k_encode(np.dstack([samples, alpha]), **options)
                shown = pictures(samples, full, alpha / full)
                yield Case(container, f"{name} with alpha", label, content, shown, wanted)
        samples = deep(GREY, "i2")
        content = imagecodecs.jpeg2k_encode(samples[..., 0], level=0, codecformat=codec)
        yield Case(container, "grey", "signed 16 bit", content, pictures(samples, None), WINDOW)


def _jpeg_xl() -> Iterator[Case]:
    for bits in (8, 16):
        label, wanted, full = f"{bits} bit", VALUE if bits == 8 else WINDOW, 2**bits - 1
        alpha = np.round(SHARE * full).astype(np.uint8 if bits == 8 else np.uint16)
        for name, picture in (("grey", GREY), ("RGB", COLOUR)):
            samples = shallow(picture, 8) if bits == 8 else deep(picture, "u2")
            for container, boxed in (("JPEG XL", True), ("JPEG XL codestream", False)):
                content = imagecodecs.jpegxl_encode(samples.squeeze(), lossless=True, usecontainer=boxed)
                yield Case(container, name, label, content, pictures(samples, full), wanted)
            content = imagecodecs.jpegxl_encode(np.dstack([samples, alpha]), lossless=True)
            shown = pictures(samples, full, alpha / full)
            yield Case("JPEG XL codestream", f"{name} with alpha", label, content, shown, wanted)
    samples = deep(GREY, "f4")
    content = imagecodecs.jpegxl_encode(samples[..., 0], lossless=True)
    yield Case("JPEG XL codestream", "grey", "float32", content, pictures(samples, None), WINDOW)
    moving = np.stack([shallow(COLOUR, 8), 255 - shallow(COLOUR, 8)])
    yield Case("JPEG XL, animated", "any", "any", imagecodecs.jpegxl_encode(moving), NONE, "ManyFrames")


def _heic() -> Iterator[Case]:
    """A file that another encoder has written of the scene, since the project's packages only decode the format."""
    content = (Path(__file__).parent / "scene.heic").read_bytes()
    yield Case("HEIC", "YCbCr", "8 bit", content, pictures(shallow(COLOUR, 8), 255), VALUE, 1.5)


def _animations() -> Iterator[Case]:
    colour = Image.fromarray(shallow(COLOUR, 8))
    many = {"save_all": True, "append_images": [colour.rotate(90)]}
    for name, kind in (("GIF, animated", "GIF"), ("WebP, animated", "WEBP"), ("PNG, animated (APNG)", "PNG")):
        yield Case(name, "any", "any", save(colour, kind, **many), NONE, "ManyFrames")
    content = png(deep(COLOUR, "u2"), 16, chunks=[chunk(b"acTL", struct.pack(">II", 2, 0))])
    yield Case("PNG, animated (APNG)", "any", "16 bit", content, NONE, "ManyFrames")


def _unusual() -> Iterator[Case]:
    colour = shallow(COLOUR, 8)
    whole = png(colour, 8)
    notes = [chunk(b"tEXt", b"Comment\0" + bytes(3 << 20))]
    notes += [chunk(b"zTXt", b"Notes\0\0" + zlib.compress(bytes(90 << 20)))]
    notes += [chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(9 << 20)))]
    content = png(colour, 8, chunks=notes)
    yield Case("PNG with long texts and a large profile", "RGB", "8 bit", content, pictures(colour, 255), VALUE)
    clear = png(np.dstack([colour, colour[..., :1] * 0]), 8)
    yield Case("any", "fully transparent", "any", clear, NONE, "NothingShown")
    large = png(np.zeros((1100, 1000, 1), np.uint8), 8)
    yield Case("any", "more pixels than `decode.max_pixels`", "any", large, NONE, "TooManyPixels")
    yield Case("any", "cut off", "any", whole[:2000], NONE, "Truncated")
    yield Case("any", "damaged", "any", whole[:700] + bytes(200) + whole[900:], NONE, "Undecodable")
    yield Case("no image", "any", "any", b"a text", NONE, "Undecodable")
    yield Case("no bytes", "any", "any", b"", NONE, "EmptyImage")


def _not_read() -> Iterator[Case]:
    heads = {
        "AVIF": b"\0\0\0\x18ftypavif",
        "JPEG XR": b"II\xbc\x01",
        "Photoshop": b"8BPS\0\x01",
        "OpenEXR": b"\x76\x2f\x31\x01",
        "PNM": b"P5 64 64 255\n",
        "DICOM as an image of a shard": bytes(128) + b"DICM",
        "NIfTI as an image of a shard": b"\x5c\x01\0\0" + bytes(340) + b"n+1\0",
        "PDF": b"%PDF-1.4",
    }
    for container, head in heads.items():
        yield Case(container, "any", "any", head + bytes(400), NONE, "Unsupported")
