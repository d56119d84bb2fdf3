"""Gives the items of a catalog their labels, patients, splits and first days, before anything is decoded."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import log
from medfocus.pipeline.data.local_tree import decoded
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, pseudonym_of
from medfocus.pipeline.ingest.catalog import Catalog
from medfocus.pipeline.ingest.items import DICOM
from medfocus.pipeline.labels.class_mapping import ClassMapping, read_class_mapping
from medfocus.pipeline.labels.folders import FolderClasses, folder_classes
from medfocus.pipeline.labels.items import Item
from medfocus.pipeline.labels.join import check_joined, join_labels
from medfocus.pipeline.labels.reader import read_labels
from medfocus.pipeline.labels.splits import TEST, TRAIN, PatientRow, assign_splits, hashed_split

# Folders are taken for classes if there are at most so many, with so many images each on average, and none has a number
# of so many digits, as dates and ids have.
_MOST_CLASSES, _FEWEST_IMAGES = 20, 4
_NUMBER = re.compile(r"\d{4}")


def label_items(
    catalog: Catalog, files: Sequence[Location], origin: Location, pseudonyms: Pseudonyms, config: Config
) -> dict[str, Any] | None:
    """Give items their labels, and log what matched.

    Args:
        catalog: the catalog, with named items.
        files: label files, the first of which counts; none takes the class of an image from its folder.
        origin: the source.
        pseudonyms: the pseudonyms of the archive.
        config: ``labels.mapping`` maps classes.

    Returns:
        The report of the join; None where there are no label files.

    Raises:
        UsageError: a label file cannot be read, contradicts itself, or names no image.
    """
    mapping = ClassMapping({})
    if config.labels.mapping is not None:
        mapping = read_class_mapping(locate(config.labels.mapping, config.storage))
    if not files:
        _label_by_folders(catalog, mapping, config)
        return None
    written = [read_labels(file) for file in files]
    tables = [mapping.apply(table) for table in written]

    def items() -> Iterator[Item]:
        return _items(catalog)

    folders = (origin.uri, origin.path)
    join = join_labels(tables, items, folders, lambda kind, text: pseudonym_of(pseudonyms, kind, text))
    check_joined(join, tables, origin.uri)
    for table in written:
        table.log()
        if config.labels.mapping is not None:
            mapping.log(row.label for row in table.rows)
    join.report.log()
    values = join.of(items())
    catalog.run_each(
        "UPDATE items SET label = ?, patient = ?, site = coalesce(?, site) WHERE item = ?",
        ((given.label, given.patient_id, given.site, item.image_id) for item, given in values if any(given)),
    )
    return join.report.as_json()


def _items(catalog: Catalog) -> Iterator[Item]:
    """The items that may be packed, in the same order at each call."""
    return map(
        Item._make,
        catalog.query(
            "SELECT item, path, patient, study, series, instance, accession FROM items"
            " WHERE outcome IS NULL ORDER BY number"
        ),
    )


def _label_by_folders(catalog: Catalog, mapping: ClassMapping, config: Config) -> None:
    """Take the class of images from their folders, unless these may be patients or studies."""
    folders: Counter[str] = Counter()
    if config.labels.folders != "never":
        for name, count in catalog.query(_IMAGES_OF_FILES):
            folders[_folder(name)] += count
    names = list(folders)
    found = folder_classes([f"{name}/image" if name else "image" for name in names], list(folders.values()))
    if config.labels.folders == "auto" and _may_name_people(catalog, found):
        log.warning(
            "the folders of the images may name patients, and are not taken for classes; name the classes in a label"
            " file (--labels), or set labels.folders=always if the folders are classes"
        )
        return
    found.log()
    if config.labels.mapping is not None:
        mapping.log(found.classes)
    classes = dict(zip(names, map(mapping, found.classes), strict=True))
    files = catalog.query("SELECT number, name FROM files")
    rows = ((classes.get(_folder(name)), number) for number, name in files)
    catalog.run_each("UPDATE items SET label = ? WHERE file = ?", (row for row in rows if row[0] is not None))


def _folder(name: bytes) -> str:
    """The folder of a file of the catalog, as readable text."""
    return decoded(name).rpartition("/")[0]


_IMAGES_OF_FILES = (
    "SELECT name, count(*) FROM files JOIN items ON items.file = files.number WHERE outcome IS NULL GROUP BY name"
)


def _may_name_people(catalog: Catalog, found: FolderClasses) -> bool:
    """Whether folders may be patients or studies: beside DICOM files, or where there are many of them or numbers."""
    classes = {name for name in found.classes if name is not None}
    if not classes:
        return False
    images = sum(count for name, count in zip(found.classes, found.images, strict=True) if name is not None)
    is_dicom = catalog.one("SELECT count(*) FROM items WHERE outcome IS NULL AND kind = ?", (DICOM,)) > 0
    many = len(classes) > _MOST_CLASSES or images < _FEWEST_IMAGES * len(classes)
    return is_dicom or many or any(_NUMBER.search(name) for name in classes)


def assign_item_splits(catalog: Catalog, config: Config) -> None:
    """Assign patients to the splits ``train`` and ``test``, where ``pack.test_share`` asks for them.

    Patients that are packed already keep theirs. An item whose patient is not known counts as a patient of its own.
    """
    share = config.pack.test_share
    if not share:
        return
    shares = {TRAIN: 1 - share, TEST: share}
    known = dict(catalog.query("SELECT coalesce(patient, item), split FROM rows WHERE split IS NOT NULL GROUP BY 1"))
    splits = assign_splits(_patients(catalog), shares, config.seed, known)
    others = catalog.query("SELECT DISTINCT coalesce(patient, item) FROM items WHERE due")
    unlabelled = ((patient, known.get(patient) or hashed_split(patient, shares, config.seed)) for (patient,) in others)
    catalog.run("DELETE FROM splits")
    catalog.run_each("INSERT INTO splits VALUES (?, ?)", list(splits.items()))
    catalog.run_each("INSERT OR IGNORE INTO splits VALUES (?, ?)", list(unlabelled))
    catalog.run(
        "UPDATE items SET split = (SELECT split FROM splits WHERE patient = coalesce(items.patient, item)) WHERE due"
    )
    if without := catalog.one("SELECT count(*) FROM items WHERE due AND label IS NOT NULL AND patient IS NULL"):
        log.warning(
            "%d labelled images have no patient: images of one patient may be in both splits, and held-out figures are"
            " then optimistic; give patient_id in the label file",
            without,
        )


def _patients(catalog: Catalog) -> Iterator[PatientRow]:
    """The patients with labelled images that are packed, or due."""
    labels: dict[str, tuple[set[str], set[str]]] = {}
    for table in ("items", "rows"):
        for patient, label, site in catalog.query(
            f"SELECT DISTINCT coalesce(patient, item), label, site FROM {table} WHERE label IS NOT NULL"
        ):
            classes, sites = labels.setdefault(patient, (set(), set()))
            classes.add(label)
            sites |= {site} if site else set()
    return (PatientRow(patient, frozenset(own), frozenset(sites)) for patient, (own, sites) in labels.items())


def set_first_days(catalog: Catalog) -> None:
    """Give each item the day of its patient's first study, which dates are counted from."""
    catalog.run(
        "INSERT INTO patients SELECT patient, min(study_date) FROM items WHERE patient IS NOT NULL GROUP BY patient"
    )
    # The day that an earlier run has counted from stays, so that the days of its rows stay right.
    catalog.run(
        "UPDATE patients SET first_day = rows.first_day FROM rows WHERE rows.patient = patients.patient AND"
        " rows.first_day IS NOT NULL"
    )
    catalog.run(
        "UPDATE items SET first_day = (SELECT first_day FROM patients WHERE patients.patient = items.patient) WHERE due"
    )
