import io
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medfocus.stages.decode import READERS
from medfocus.stages.formats.media_types import JPEG, PNG, media_type_of
from medfocus.stages.formats.picture import ImageError
from medfocus.stages.formats.strip import hides_pixels, without_metadata

SECRET = "Miller^Anna"


def shown(content: bytes, media_type: str) -> object:
    """Pixels and orientation of a file, or the kind of its error."""
    try:
        picture = READERS[media_type](content, 10**8)
    except ImageError as error:
        return error.kind
    return picture.orientation, [(layer.mode, layer.size, layer.tobytes()) for layer in picture.layers]


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274], tags[270], tags[315] = orientation, SECRET, SECRET
    return tags


def notes() -> PngInfo:
    info = PngInfo()
    info.add_text("Author", SECRET)
    info.add_text("Comment", SECRET, zip=True)
    info.add_itxt("Description", SECRET, zip=True)
    return info


def noise(mode: str, side: int = 40) -> Image.Image:
    samples = np.random.default_rng(0).integers(0, 256, (side, side + 3, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(samples[..., :2].copy().view(np.uint16)[..., 0])
    return Image.fromarray(samples, "RGBA").convert(mode)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    st.integers(0, 9),
    st.sampled_from([b"", b"behind the end: Miller^Anna"]),
)
def test_a_png_keeps_pixels_and_orientation_alone(mode: str, orientation: int, behind: bytes) -> None:
    profile = b"profile of Miller^Anna"
    file = (
        saved(noise(mode), "PNG", pnginfo=notes(), exif=exif(orientation), icc_profile=profile, dpi=(70, 70)) + behind
    )
    stripped = without_metadata(file, PNG)
    assert shown(stripped, PNG) == shown(file, PNG)
    kinds = [kind for kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"Miller") if kind in stripped]
    assert not kinds and without_metadata(stripped, PNG) == stripped


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["L", "RGB", "CMYK"]),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([0, 3]),
    st.sampled_from([b"", b"\xff\xd8\xff\xe1behind the end: Miller^Anna\xff\xd9"]),
)
def test_a_jpeg_keeps_pixels_and_orientation_alone(
    mode: str, orientation: int, progressive: bool, restarts: int, behind: bytes
) -> None:
    file = saved(
        noise(mode), "JPEG", comment=SECRET, exif=exif(orientation), icc_profile=SECRET.encode(), dpi=(70, 70),
        progressive=progressive, restart_marker_rows=restarts, xmp=b"<x>Miller^Anna</x>",
    )  # fmt: skip
    stripped = without_metadata(file + behind, JPEG)
    assert shown(stripped, JPEG) == shown(file, JPEG)
    assert b"Miller" not in stripped and without_metadata(stripped, JPEG) == stripped


@pytest.mark.parametrize("codec", [imagecodecs.jpegls_encode, imagecodecs.jpeg8_encode])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_of_more_bits_and_jpeg_ls_keep_their_pixels(codec: object, channels: int) -> None:
    samples = np.random.default_rng(1).integers(0, 4096, (40, 30, channels)).astype(np.uint16).squeeze()
    options = {"bitspersample": 12} if codec is imagecodecs.jpeg8_encode else {}
    file = codec(samples, **options)  # type: ignore[operator]
    comment = b"\xff\xfe\0\x0dMiller^Anna"
    stripped = without_metadata(file[:2] + comment + file[2:] + b"Miller", JPEG)
    assert shown(stripped, JPEG) == shown(file, JPEG) and b"Miller" not in stripped


def test_thumbnails_and_fields_of_others_leave_application_segments() -> None:
    file = saved(noise("RGB"), "JPEG", quality=90)
    jfif = b"\xff\xe0\0\x13JFIF\0\1\1\0\0\x48\0\x48\1\1mil"  # with a thumbnail of one pixel
    adobe = b"\xff\xee\0\x14Adobe\0\x64\0\0\0\0\1Miller"
    start = file.index(b"\xff\xdb")
    changed = file[:2] + jfif + adobe + file[start:]
    stripped = without_metadata(changed, JPEG)
    assert shown(stripped, JPEG) == shown(changed, JPEG)
    assert b"mil" not in stripped and b"Miller" not in stripped and b"Adobe" in stripped


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_files_raise_nothing_else(data: st.DataObject) -> None:
    media_type = data.draw(st.sampled_from([PNG, JPEG]))
    whole = saved(noise("RGB", 16), media_type[6:], exif=exif(6))
    content = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        stripped = without_metadata(bytes(content), media_type)
    except ImageError:
        return
    assert len(stripped) <= len(content) + 60


@pytest.mark.parametrize("media_type", [PNG, JPEG, "image/tiff"])
def test_other_files_are_refused(media_type: str) -> None:
    with pytest.raises(ImageError):
        without_metadata(b"Miller", media_type)


@pytest.mark.parametrize(
    ("mode", "options", "hidden"),
    [("L", {}, False), ("RGB", {}, False), ("LA", {}, True), ("RGBA", {}, True), ("P", {"transparency": 0}, True)],
)
def test_opacity_can_hide_pixels(mode: str, options: dict[str, int], hidden: bool) -> None:
    assert hides_pixels(saved(noise(mode), "PNG", **options), PNG) == hidden
    assert not hides_pixels(saved(noise("L"), "JPEG"), JPEG)


@pytest.mark.parametrize("folder", ["pathological", "field_pictures"])
def test_real_files_show_the_same(folder: str, request: pytest.FixtureRequest) -> None:
    """Every picture that can be shown; of the others, the error may be another one."""
    compared = 0
    for path in sorted(request.getfixturevalue(folder).rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        media_type = media_type_of(content)
        if media_type in (PNG, JPEG):
            before = shown(content, media_type)
            after = shown(without_metadata(content, media_type), media_type)
            assert after == before or (isinstance(before, str) and isinstance(after, str)), path.name
            compared += 1
    assert compared


def test_the_new_exif_block_is_valid() -> None:
    file = without_metadata(saved(noise("L"), "PNG", exif=exif(8)), PNG)
    place = file.index(b"eXIf")
    length = int.from_bytes(file[place - 4 : place])
    assert zlib.crc32(file[place : place + 4 + length]) == int.from_bytes(file[place + 4 + length : place + 8 + length])
    with Image.open(io.BytesIO(file)) as image:
        assert dict(image.getexif()) == {274: 8}
    with Image.open(io.BytesIO(without_metadata(saved(noise("L"), "JPEG", exif=exif(3)), JPEG))) as image:
        assert dict(image.getexif()) == {274: 3}


def test_a_second_picture_is_cut_off(pathological: Path) -> None:
    content = (pathological / "multipage" / "Pillow__sugarshack.mpo").read_bytes()
    stripped = without_metadata(content, JPEG)
    assert stripped.count(b"\xff\xd8\xff") == 1 and len(stripped) < len(content) * 0.7
