"""The pictures that the decode stage makes of every kind of file, against those of a viewer (``viewer``)."""

import io
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medfocus.stages.decode import media_type_of
from medfocus.stages.formats import picture
from tests.stages.formats import viewer
from tests.stages.formats.cases import COLOUR, GREY, VALUE, WINDOW, Case, decoded, deep, pictures, shallow
from tests.stages.formats.document import document, table
from tests.stages.formats.encoders import chunk, directory, exif, png, save, short, tiff
from tests.stages.formats.file_cases import cases
from tests.stages.formats.tiff_cases import written

CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.container}, {case.colour}, {case.samples}")
def test_a_file_is_decoded_as_a_viewer_shows_it(case: Case) -> None:
    outcome = case.outcome()
    assert outcome == case.wanted or (case.wanted not in (VALUE, WINDOW) and outcome.startswith(case.wanted + ": "))


def test_the_table_in_the_document_is_up_to_date() -> None:
    assert document() == table(), "run: python -m tests.stages.formats.document --write"


def shown(content: bytes, side: int = viewer.SIDE) -> np.ndarray:
    out = decoded(content, side)
    assert out["error"][0] == "", out["message"][0]
    return out["pixels"][0]


def off(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got.astype(int) - wanted.astype(int)).mean())


LAYOUTS = {
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 32)},
    "one strip": {},
    "BigTIFF": {"bigtiff": True},
    "predictor": {"predictor": True, "compression": "zlib"},
    "predictor and tiles": {"predictor": True, "compression": "lzw", "tile": (32, 16)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4", "f4", "f8"])
def test_a_tiff_is_decoded_alike_in_each_layout(kind: str, planar: str, order: str, layout: str) -> None:
    samples = shallow(COLOUR, 8) if kind == "u1" else deep(COLOUR, kind)
    stored = np.moveaxis(samples, 2, 0) if planar == "separate" else samples
    buffer = io.BytesIO()
    options = {"photometric": "rgb", "planarconfig": planar, "byteorder": order, **LAYOUTS[layout]}
    tifffile.imwrite(buffer, stored, metadata=None, **options)
    by_value, windowed = pictures(samples, 255 if kind == "u1" else None)
    wanted = by_value if kind == "u1" else windowed
    assert off(shown(buffer.getvalue()), wanted) <= 0.5


def turned(kind: str, samples: np.ndarray, orientation: int) -> bytes:
    """A file of samples uint8 [H, W, 3] with an orientation."""
    image, block = Image.fromarray(samples), b"Exif\0\0" + exif(orientation)
    if kind == "PNG 16 bit":
        return png(samples.astype(np.uint16) * 257, 16, chunks=[chunk(b"eXIf", exif(orientation))])
    if kind == "PNG":
        return png(samples, 8, chunks=[chunk(b"eXIf", exif(orientation))])
    if kind == "JPEG 12 bit":
        content = imagecodecs.jpeg8_encode(
            samples.astype(np.uint16) * 16, level=99, bitspersample=12, subsampling="444"
        )
        return content[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + content[2:]
    if kind == "JPEG":
        return save(image, "JPEG", quality=98, subsampling=0, exif=block)
    if kind == "WebP":
        return save(image, "WEBP", lossless=True, exif=block)
    photometric, stored = (6, np.asarray(image.convert("YCbCr"))) if kind == "TIFF YCbCr" else (2, samples)
    tags = {274: short(orientation)} | ({530: short(1, 1)} if kind == "TIFF YCbCr" else {})
    return tiff(directory(stored, 8, photometric, tags=tags))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "PNG 16 bit", "JPEG", "JPEG 12 bit", "WebP", "TIFF", "TIFF YCbCr"])
def test_an_orientation_is_applied_once_in_every_container(kind: str, orientation: int) -> None:
    samples = shallow(COLOUR, 8)[:40]
    out = decoded(turned(kind, samples, orientation))
    assert out["error"][0] == "", out["message"][0]
    upright = viewer.upright(samples, orientation if 1 <= orientation <= 8 else 1)
    if kind in ("PNG 16 bit", "JPEG 12 bit"):
        upright = viewer.on_black(viewer.by_window(upright))
    assert (out["height"][0], out["width"][0]) == upright.shape[:2]
    wanted = np.asarray(Image.fromarray(upright).resize((viewer.SIDE, viewer.SIDE), Image.Resampling.BILINEAR))
    assert off(out["pixels"][0], wanted) <= 1.5


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from([case for case in CASES if case.wanted in (VALUE, WINDOW)]), share=st.floats(0, 1))
def test_a_truncated_file_is_refused_unless_its_image_is_complete(case: Case, share: float) -> None:
    """A part of a picture never passes for all of it, and the error of a truncated file is true."""
    cut = Case(**{**vars(case), "content": case.content[: int(len(case.content) * share)]})
    outcome = cut.outcome()
    if outcome in (VALUE, WINDOW):  # only bytes after the image are lost
        return
    kind = outcome.partition(": ")[0]
    assert kind in ("EmptyImage", "Truncated", "Undecodable", "ManyFrames"), outcome
    assert "does not expect" not in outcome


@settings(max_examples=200, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_damage_ends_in_quarantine_with_a_reason_or_in_a_picture(case: Case, data: st.DataObject) -> None:
    content = bytearray(case.content)
    for _ in range(data.draw(st.integers(1, 6))):
        if content:
            content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    out = decoded(bytes(content), 16, 300_000)
    assert out["error"][0] == "" or (len(out["message"][0]) > 10 and "\n" not in out["message"][0])


def test_a_fully_transparent_pixel_is_black() -> None:
    hidden, shown_value = 250, 40
    samples = np.full((64, 64, 4), hidden, np.uint8)
    samples[..., 3] = 0
    samples[8:40, 8:40] = shown_value, shown_value, shown_value, 255
    for content in (png(samples, 8), png(samples.astype(np.uint16) * 257, 16), save(Image.fromarray(samples), "TIFF")):
        pixels = shown(content)
        assert pixels[50, 50].max() == 0 and pixels[0, 0].max() == 0


@pytest.mark.parametrize("side", [32, 64, 100])
def test_ordinary_images_are_decoded_as_pillow_decodes_them(side: int) -> None:
    """The models were tuned on these pixels, so that none may change."""
    colour = shallow(COLOUR, 8)[:50]
    for image in (Image.fromarray(colour), Image.fromarray(colour[..., 0])):
        for kind, options in (("PNG", {}), ("JPEG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {})):
            content = save(image, kind, **options)
            opened = Image.open(io.BytesIO(content))
            wanted = np.asarray(opened.resize((side, side), Image.Resampling.BILINEAR)).reshape(side, side, -1)
            assert np.array_equal(np.broadcast_to(shown(content, side), wanted.shape), wanted)


@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_window_equals_that_of_numpy_at_any_size(kind: str, data: st.DataObject) -> None:
    """Bands of a few rows give the same window as the whole, whatever the values are."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
    seed, spread = data.draw(st.integers(0, 2**16)), data.draw(st.sampled_from([2, 30, 3000]))
    random = np.random.default_rng(seed)
    values = random.integers(0, spread, (height, width, 1)) - (spread // 2 if kind in ("i4", "f4") else 0)
    samples = values.astype("u2" if kind == "u1" else kind)
    before, picture._BAND = picture._BAND, 16
    try:
        (layer,) = picture.Raster(samples, None).to_picture().layers
    finally:
        picture._BAND = before
    low, high = np.percentile(samples.astype(float), (0.5, 99.5))
    wanted = np.clip((samples[..., 0] - low) / (high - low), 0, 1) if high > low else samples[..., 0] > low
    assert np.abs(np.asarray(layer) - wanted * 255.0).max() <= 0.5 + 1e-6


def bombs() -> dict[str, bytes]:
    """Small files whose headers name an image that takes gigabytes."""
    grey, colour = shallow(GREY, 8), shallow(COLOUR, 8)
    jpeg = bytearray(save(Image.fromarray(grey[..., 0]), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # 65500 x 65500
    webp, lossless = (bytearray(save(Image.fromarray(colour), "WEBP", lossless=kind)) for kind in (False, True))
    webp[26:30] = b"\xff\x3f\xff\x3f"
    lossless[21:25] = b"\xff\xff\xff\x0f"
    gif, bmp = (
        bytearray(save(Image.fromarray(grey[..., 0]), "GIF")),
        bytearray(save(Image.fromarray(grey[..., 0]), "BMP")),
    )
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp[18:26] = (60000).to_bytes(4, "little") * 2
    codestream = bytearray(imagecodecs.jpeg2k_encode(colour, codecformat="j2k"))
    codestream[8:16] = (60000).to_bytes(4, "big") * 2
    large = {256: (4, [60000]), 257: (4, [60000])}
    fields, _ = directory(grey, 8, 1)
    inner = {259: short(7), 279: (4, [len(jpeg)])}
    return {
        "PNG": png(np.zeros((1, 60000, 1), np.uint8), 8).replace((60000).to_bytes(4, "big"), b"\0\xff\xff\xff"),
        "JPEG": bytes(jpeg),
        "WebP": bytes(webp),
        "WebP, lossless": bytes(lossless),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "JPEG 2000": bytes(codestream),
        "TIFF": tiff(directory(grey, 8, 1, tags=large)),
        "TIFF of many samples": tiff(directory(grey, 8, 1, tags={277: short(60000)})),
        "TIFF with a large JPEG inside": tiff((fields | inner, bytes(jpeg))),
    }


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """This process may have so many bytes of memory more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("kind", bombs())
def test_a_header_with_too_many_pixels_is_refused_before_decoding(kind: str) -> None:
    """Under a limit of memory that decoding would exceed: the images in the headers take 4 GB or more."""
    content = bombs()[kind]
    with memory_limit(1 << 29):
        out = decoded(content)
    assert out["error"][0] == "TooManyPixels", out["message"][0]


# Decodes a file within one MiB of memory beside what the process holds, and prints the error.
_SHORT_OF_MEMORY = """
import sys
from pathlib import Path
from tests.stages.formats.cases import decoded
from tests.stages.formats.test_formats import memory_limit
content = Path(sys.argv[1]).read_bytes()
with memory_limit(1 << 20):
    out = decoded(content, max_pixels=10**9)
print(out["error"][0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("kind", ["PNG", "PNG 16 bit", "TIFF"])
def test_a_lack_of_memory_is_not_reported_as_damage(kind: str, tmp_path: Path) -> None:
    """In a process of its own, because memory that other tests have freed may be enough for the image."""
    zeros = np.zeros((9000, 9000), np.uint16 if kind == "PNG 16 bit" else np.uint8)
    content = written(zeros, compression="zlib") if kind == "TIFF" else imagecodecs.png_encode(zeros, level=1)
    (tmp_path / "large").write_bytes(content)
    assert output_of(_SHORT_OF_MEMORY, tmp_path / "large") == "OutOfMemory"


def output_of(script: str, *files: Path) -> str:
    """What a script prints when it is called with files, from the repository."""
    command = [sys.executable, "-c", script, *map(str, files)]
    repository = Path(__file__).parents[3]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.strip()


def test_the_pixel_limit_of_pillow_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that ``max_pixels`` allows is read in every container, whatever Pillow's own limit is, which stays."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for case in CASES:
        if case.wanted in (VALUE, WINDOW):
            assert case.outcome() == case.wanted
    assert Image.MAX_IMAGE_PIXELS == 100


# Decodes two files and prints by how many KiB the second raised the peak of the process.
_PEAK = """
import sys
from pathlib import Path
from tests.stages.formats.cases import decoded
peaks = []
for name in sys.argv[1:]:
    assert not decoded(Path(name).read_bytes(), 64, 10**8)["error"][0]
    status = Path("/proc/self/status").read_text()
    peaks.append(int(status.partition("VmHWM:")[2].split()[0]))
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from Linux's /proc")
def test_an_image_of_16_bits_takes_a_few_bytes_a_pixel(tmp_path: Path) -> None:
    side = 4000
    rows, columns = np.mgrid[0:side, 0:side].astype(np.uint16)
    (tmp_path / "large.png").write_bytes(imagecodecs.png_encode(rows * 3 + columns, level=1))
    (tmp_path / "small.png").write_bytes(png(deep(GREY, "u2"), 16))
    kibibytes = int(output_of(_PEAK, tmp_path / "small.png", tmp_path / "large.png"))
    assert 3 < kibibytes * 1024 / side**2 < 12  # two as stored, one as shown, and bands of a fixed size


@pytest.mark.parametrize("codec", ["png_decode", "jpeg2k_decode", "jpegls_decode", "lerc_decode"])
def test_a_codec_that_the_build_lacks_is_named(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """imagecodecs is built with and without each codec; what it does without one is to raise this when it is called."""

    def absent(*_: object, **__: object) -> None:
        raise imagecodecs.DelayedImportError(codec)

    grey = deep(GREY, "u2")[..., 0]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, grey, compression="lerc")
    content = {
        "png_decode": png(grey[..., None], 16),
        "jpeg2k_decode": imagecodecs.jpeg2k_encode(grey),
        "jpegls_decode": imagecodecs.jpegls_encode(grey),
        "lerc_decode": buffer.getvalue(),
    }[codec]
    monkeypatch.setattr(imagecodecs, codec, absent)
    monkeypatch.setitem(tifffile.TIFF.DECOMPRESSORS._codecs, 34887, absent)
    out = decoded(content)
    assert out["error"][0] == "MissingDecoder" and "imagecodecs" in out["message"][0]


HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    ".jpe": (lambda: save(Image.fromarray(shallow(COLOUR, 8)), "JPEG"), "image/jpeg"),
    ".jp2": (lambda: imagecodecs.jpeg2k_encode(shallow(COLOUR, 8), codecformat="jp2"), "image/jp2"),
    ".j2k": (lambda: imagecodecs.jpeg2k_encode(shallow(COLOUR, 8), codecformat="j2k"), "image/j2c"),
    ".dib": (lambda: save(Image.fromarray(shallow(COLOUR, 8)), "DIB"), "image/bmp"),
    ".bmp": (lambda: save(Image.fromarray(shallow(COLOUR, 8)), "BMP"), "image/bmp"),
    ".gif": (lambda: save(Image.fromarray(shallow(GREY, 8)[..., 0]), "GIF"), "image/gif"),
    ".webp": (lambda: save(Image.fromarray(shallow(COLOUR, 8)), "WEBP"), "image/webp"),
    ".tif": (lambda: tiff(directory(shallow(GREY, 8), 8, 1, order=">"), order=">"), "image/tiff"),
    ".png": (lambda: png(shallow(GREY, 8), 8), "image/png"),
}


@pytest.mark.parametrize("suffix", HEADERS)
def test_the_media_type_depends_on_the_first_bytes(suffix: str) -> None:
    make, media_type = HEADERS[suffix]
    assert media_type_of(make()) == media_type_of(make()[:64]) == media_type


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=64, max_size=99))
def test_a_text_has_no_media_type(text: str) -> None:
    signatures = ("GIF87a", "GIF89a", "8BPS", "DDS ", "P1", "P2", "P3", "P4", "P5", "P6")
    assert text.startswith(signatures) or text[4:8] == "ftyp" or media_type_of(text.encode()) is None


@pytest.mark.parametrize(
    "text", [b"BM, the patient was seen", b"II* notes", b"P1 was seen on 3 May", b"GIF images", b"MM"]
)
def test_a_text_that_begins_like_an_image_has_no_media_type(text: bytes) -> None:
    assert media_type_of(text + b" " * 100) is None
