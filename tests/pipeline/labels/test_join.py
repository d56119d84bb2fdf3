"""Names of a label file and the images they lead to."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.labels.items import Item
from medfocus.pipeline.labels.join import Join, Values, join_labels
from medfocus.pipeline.labels.names import WAY_TEXTS, Way
from medfocus.pipeline.labels.reader import LabelFile, LabelRow


def labels_of(*rows: tuple[str | None, str | None, str | None], columns: Sequence[str] = ("file",)) -> LabelFile:
    """Rows of file, image_id and label."""
    made = [LabelRow(line, file, image, label, None, None) for line, (file, image, label) in enumerate(rows, start=2)]
    return LabelFile("labels.csv", "digest", made, [*columns, "label"], "CSV", [], Counter())


def joined(names: Sequence[str], images: Sequence[str], folders: Sequence[str] = ()) -> Join:
    labels = labels_of(*[(name, None, f"label {index}") for index, name in enumerate(names)])
    return join_with(labels, images, folders)


def join_with(labels: LabelFile, images: Sequence[str], folders: Sequence[str] = ()) -> Join:
    return join_labels([labels], lambda: items_of(images), folders)


def items_of(images: Sequence[str]) -> list[Item]:
    return [Item(image, image) for image in images]


def rows_of(join: Join, images: Sequence[str]) -> dict[str, Values]:
    """What the files say of the images that they name."""
    return {item.image_id: values for item, values in join.of(items_of(images)) if values != Values()}


def found(join: Join, images: Sequence[str]) -> dict[str, str | None]:
    return {image: values.label for image, values in rows_of(join, images).items()}


NFD = unicodedata.normalize("NFD", "Müller.png")


@pytest.mark.parametrize(
    ("name", "image", "way"),
    [
        ("a.png", "a.png", Way.EXACT),
        ("./a.png", "a.png", Way.PATH),
        (" a.png\u00a0", "a.png", Way.PATH),
        ("x//y/./a.png", "x/y/a.png", Way.PATH),
        ("x\\y\\a.png", "x/y/a.png", Way.PATH),
        (".\\x\\a.png", "x/a.png", Way.PATH),
        ("/data/in/x/a.png", "x/a.png", Way.PATH),
        ("file:///data/in/x/a.png", "x/a.png", Way.PATH),
        ("s3://bucket/in/x/a.png", "x/a.png", Way.PATH),
        (NFD, unicodedata.normalize("NFC", NFD), Way.UNICODE),
        (unicodedata.normalize("NFC", NFD), NFD, Way.UNICODE),
        ("A.PNG", "a.png", Way.CASE),
        ("X\\Ä.png", "x/ä.PNG", Way.CASE),
        ("x/a", "x/a.png", Way.NO_SUFFIX),
        ("scan.1", "scan.1.jpeg", Way.NO_SUFFIX),
        ("my%20scan.png", "my scan.png", Way.URL),
        ("file:///data/in/M%C3%BCller.png", "Müller.png", Way.URL),
        ("Röntgen.png", quote("Röntgen.png".encode("cp1252")), Way.FILE_NAME),
        ("x/Röntgen", quote("x/Röntgen.png".encode("cp1252")), Way.NO_SUFFIX),
        ("file:///data/in/R%F6ntgen.png", "R%F6ntgen.png", Way.PATH),
        ("a.png", "x/y/a.png", Way.END),
        ("y\\A", "x/y/a.png", Way.END),
    ],
)
def test_a_name_leads_to_its_image_and_the_way_is_known(name: str, image: str, way: Way) -> None:
    images = ["other.png", image, "y/z.png"]
    join = joined([name, "absent.png"], images, ["s3://bucket/in", "bucket/in", "/data/in"])
    assert found(join, images) == {image: "label 0"}
    report = join.report.files[0]
    assert report.images == {("file", WAY_TEXTS.get(way, "")): 1}
    assert report.absent == 1 and report.absent_lines == [3] and not report.ambiguous and not report.folder


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("a", ["a.png", "a.jpg"]),
        ("A.png", ["a.png", "a.PNG"]),
        ("é.png", ["E\u0301.png", "É.png"]),
        ("a.png", ["x/a.png", "y/a.png"]),
    ],
)
def test_a_name_that_fits_several_images_is_joined_to_none(
    name: str, images: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    images = [*images, "b.png"]
    join = joined(["b.png", name], images)
    assert found(join, images) == {"b.png": "label 0"}
    assert join.report.files[0].ambiguous == [3] and join.report.files[0].absent == 0
    join.report.log()
    assert "1 labels fit several images" in caplog.text and "line 3" in caplog.text


def test_the_closest_image_is_meant() -> None:
    images = ["a.png", "A.png", "A.PNG", "a", "x/a.png"]
    labels = {"A.png": "label 0", "a": "label 1", "a.png": "label 2"}
    assert found(joined(["A.png", "a", "a.png"], images), images) == labels
    both = [NFD, unicodedata.normalize("NFC", NFD)]
    images = [both[1], quote(both[0])]
    assert found(joined(both, images), images) == {quote(both[0]): "label 0", both[1]: "label 1"}


@pytest.mark.parametrize(
    ("names", "images", "folder"),
    [
        (["in/a.png", "in/b.png"], ["a.png", "b.png", "c.png"], True),
        (["D:\\Study 7\\in\\x\\a.png", "D:\\Study 7\\in\\b"], ["x/a.png", "b.png", "a.png"], True),
        (["https://host/in/a.png"], ["A.png"], True),
        (["p1/a.png", "p2/b.png"], ["a.png", "b.png"], False),  # folders of patients in front: other images
        (["p1/a.png", "b.png"], ["a.png", "b.png"], False),
        (["/x/y/a.png"], ["a.png", "y/a.png"], False),  # either may be meant
    ],
)
def test_one_folder_in_front_of_all_names_may_be_another(
    names: list[str], images: list[str], folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    join = joined(names, images)
    join.report.log()
    assert join.report.files[0].folder is folder is ("the same other folder in front" in caplog.text)
    assert not joined(names, images, ["/data/in"]).report.files[0].folder or not names[0].startswith("in/")
    assert join.report.joined == (len(names) if folder else sum(name in images for name in names))


@pytest.mark.parametrize(
    ("files", "ids", "by"),
    [
        (["a.png", "b.png"], ["1", "2"], "file"),
        (["a.png", "b.png"], ["a.png", "b.png"], "file"),
        (["a.png", "b.png"], ["b.png", "a.png"], "file"),
        (["scan-1.tif", "scan-2.tif"], ["a.png", "b.png"], "image_id"),
        (["a.png", "gone.png"], ["a.png", "b.png"], "image_id"),
        (["a.png", None], [None, "b.png"], "file"),
    ],
)
def test_of_two_columns_the_one_that_names_more_images_counts_and_else_file(files: list, ids: list, by: str) -> None:
    labels = labels_of(
        *[(file, image, f"{file or image}") for file, image in zip(files, ids, strict=True)],
        columns=("file", "image_id"),
    )
    names = files if by == "file" else ids
    expected = {
        name or other: label for name, other, label in zip(names, ids, [r.label for r in labels.rows], strict=True)
    }
    images = ["a.png", "b.png"]
    assert found(join_with(labels, images), images) == expected


def test_rows_of_one_image_are_one() -> None:
    labels = labels_of(("a.png", None, "x"), ("a.png", None, "x"), ("./a.png", None, None), ("b.png", None, None))
    labels.rows[2:3] = [labels.rows[2]._replace(patient_id="P1")]  # type: ignore[index]
    join = join_with(labels, ["a.png", "b.png"])
    assert rows_of(join, ["a.png", "b.png"]) == {"a.png": Values("x", "P1")} and join.report.joined == 2


@pytest.mark.parametrize("other", ["Smith.png", "./Smith.png", "SMITH.png", "Smith"])
@pytest.mark.parametrize(("column", "thing"), [("label", "labels"), ("patient_id", "patients"), ("site", "sites")])
def test_two_values_of_one_image_are_an_error_that_names_lines_only(other: str, column: str, thing: str) -> None:
    labels = labels_of()
    rows = [LabelRow(2, "Smith.png"), LabelRow(9, other)]
    labels.rows.extend(row._replace(**{column: str(row.line)}) for row in rows)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=rf"^labels.csv: lines 2 and 9 give one image two {thing}; keep one of them$"):
        join_with(labels, ["Smith.png"])


def test_the_log_counts_and_names_nothing(caplog: pytest.LogCaptureFixture) -> None:
    images = ["Smith.png", "b.png", "c.png", "d.png"]
    with caplog.at_level(logging.INFO):
        joined(["Smith.PNG", "b", "./c.png", "gone.png", "bad.gif"], images).report.log()
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "labels joined",
        "labels joined loosely: 1 by another spelling of the path, 1 by another letter case, 1 without the suffix",
        "2 labels name no image of the source and are left out, in lines 5, 6",
    ]
    counts = {"images": 3, "images_without_label": 1, "patients": 0, "sites": 0}
    assert caplog.records[0].fields == counts  # type: ignore[attr-defined]


parts = st.text(st.sampled_from("abAB12.é\u0301%_- "), min_size=1, max_size=5).filter(lambda part: part.strip(". "))
paths = st.lists(parts, min_size=1, max_size=3).map("/".join)


@given(st.lists(paths, min_size=1, max_size=8, unique=True), st.data())
def test_every_image_is_found_by_its_own_name_and_by_no_other(images: list[str], data: st.DataObject) -> None:
    """Whatever other images there are: a name finds its image exactly, and in a loose spelling that one or none."""
    assert found(joined(images, images), images) == {image: f"label {index}" for index, image in enumerate(images)}
    image = data.draw(st.sampled_from(images))
    change = data.draw(
        st.sampled_from(
            [
                str.upper,
                lambda name: "./" + name,
                lambda name: name.replace("/", "\\"),
                lambda name: unicodedata.normalize("NFD", name),
                lambda name: "/data/in/" + name,
            ]
        )
    )
    spelled = change(image)
    if spelled not in images:
        join = joined([spelled], images, ["/data/in"])
        report = join.report.files[0]
        assert not join.report.joined or (join.report.joined == 1 and report.absent == 0)
        same = [name for name in images if name.strip().casefold() == image.strip().casefold()]
        if len(same) == 1 and "%" not in "".join(images) and not report.ambiguous:
            assert set(found(join, images)) == {image}
