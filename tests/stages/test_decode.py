import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medfocus.stages.decode import Decode, media_type_of
from tests.conftest import png

random = np.random.default_rng(0)
GREY = random.integers(0, 256, (30, 40), dtype=np.uint8)
COLOUR = random.integers(0, 256, (24, 16, 3), dtype=np.uint8)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A PNG whose header names 60000 x 60000 pixels, with almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def decode(*images: bytes, media_type: str = "image/png", size: int = 32) -> dict[str, np.ndarray]:
    batch = {
        "image_id": np.array([str(i) for i in range(len(images))], object),
        "image": np.array([*images, None], object)[:-1],
        "media_type": np.full(len(images), media_type, object),
    }
    return Decode(size=size, max_pixels=1_000_000)(batch)


def test_a_grey_batch_has_one_channel_and_the_sizes_of_the_files() -> None:
    out = decode(png(GREY), png(np.repeat(GREY[:, :, None], 3, 2)))
    assert out["pixels"].shape == (2, 32, 32, 1)
    assert out["height"].tolist() == [30, 30] and out["width"].tolist() == [40, 40]
    assert "image" not in out and (out["error"] == "").all()
    expected = np.asarray(Image.fromarray(GREY).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(out["pixels"][0, :, :, 0], expected)


def test_a_batch_with_a_coloured_image_has_three_channels() -> None:
    out = decode(png(GREY), png(COLOUR))
    assert out["pixels"].shape == (2, 32, 32, 3)
    assert (out["pixels"][0, ..., 0] == out["pixels"][0, ..., 2]).all()
    assert not (out["pixels"][1, ..., 0] == out["pixels"][1, ..., 2]).all()


def test_sixteen_bits_are_windowed() -> None:
    deep = np.linspace(1000, 61000, 64 * 64).astype(np.uint16).reshape(64, 64)
    deep[0, 0] = 0  # one dead pixel must not change the window
    pixels = decode(save(Image.fromarray(deep), "PNG"), size=64)["pixels"][0, :, :, 0]
    low, high = np.percentile(deep, (0.5, 99.5))
    expected = np.clip((deep.astype(float) - low) / (high - low), 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "EmptyImage"),
        (b"not an image", "Undecodable"),
        (png(GREY)[:200], "Truncated"),
        (save(Image.fromarray(GREY), "JPEG"), "WrongMediaType"),
        (huge_png(), "TooManyPixels"),
        (png(np.zeros((1100, 1000), np.uint8)), "TooManyPixels"),
        (save(Image.fromarray(GREY), "GIF"), "WrongMediaType"),
    ],
)
def test_a_bad_image_fails_alone(content: bytes, kind: str) -> None:
    out = decode(png(GREY), content, png(GREY))
    assert out["error"].tolist() == ["", kind, ""]
    assert out["stage"].tolist() == ["", "decode", ""]
    assert out["message"][1] and "\n" not in out["message"][1]
    assert np.array_equal(out["pixels"][0], out["pixels"][2]) and out["pixels"][0].any()


def test_a_file_with_several_frames_is_refused() -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(GREY)]
    content = save(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert decode(content, media_type="image/tiff")["error"].tolist() == ["ManyFrames"]


def test_an_image_without_finite_values_is_refused() -> None:
    values = np.full((8, 8), np.nan, np.float32)
    content = save(Image.fromarray(values), "TIFF")
    assert decode(content, media_type="image/tiff")["error"].tolist() == ["NotFinite"]


def test_the_media_type_depends_on_the_bytes() -> None:
    assert media_type_of(png(GREY)) == "image/png"
    assert media_type_of(save(Image.fromarray(GREY), "JPEG")) == "image/jpeg"
    assert media_type_of(b"") is None and media_type_of(b"\x89PNG nothing") is None
