"""``medfocus pack``: an archive of images to shards and a manifest, without what identifies a person."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medfocus.cluster.connect import connected
from medfocus.pipeline.config import Config
from medfocus.pipeline.console.logs import event, log, progress
from medfocus.pipeline.data.manifest import Manifest, newest_manifest, write_manifest
from medfocus.pipeline.data.shared_paths import check_shared
from medfocus.pipeline.data.storage import Location, locate
from medfocus.pipeline.data.withdrawal import withdraw as withdraw_patients
from medfocus.pipeline.data.withdrawal import withdrawn
from medfocus.pipeline.errors import MedFocusError, UsageError, before_start
from medfocus.pipeline.identity.key import load_key
from medfocus.pipeline.identity.mapping import write_mapping
from medfocus.pipeline.identity.pseudonyms import Pseudonyms
from medfocus.pipeline.ingest import labelling, quarantine
from medfocus.pipeline.ingest.catalog import Catalog, file_of, open_catalog
from medfocus.pipeline.ingest.history import History, patients_of
from medfocus.pipeline.ingest.items import Naming
from medfocus.pipeline.ingest.portion import packer_of
from medfocus.pipeline.ingest.source import LeftOut, format_counts, walk_source
from medfocus.pipeline.ingest.stream import PackTotals, pack_portions
from medfocus.pipeline.ingest.survey import Surveyor, audit_of, originals_of, survey
from medfocus.pipeline.tracking import runs


def run(
    config: Config,
    source: str,
    shards: str,
    labels: str | Sequence[str] | None = None,
    *,
    audit: str | None = None,
    mapping: str | None = None,
    withdraw: str | None = None,
    retry_quarantined: bool = False,
) -> dict[str, Any]:
    """Pack the images of a source into shards of bounded size, and commit a version of the manifest last.

    Images are found by their bytes, also inside of zip and tar files. Packing again adds what is new or has changed as
    new shards. A call that was stopped goes on where it was. Files that cannot be packed are in ``quarantine/`` below
    the shards, with the reason.

    Args:
        config: the configuration; ``pack``, ``deid`` and ``burned_in`` decide the rows.
        source: folder or prefix of images.
        shards: prefix to write to.
        labels: label files (``labels.reader``); the first that gives a value counts. None takes the class of each
            image from its folder (``labels.folders``).
        audit: local file to write what was removed to, by attribute and counts.
        mapping: local file to write the ids and paths of each pseudonym to, encrypted under the key.
        withdraw: text file with a PatientID a line; these patients leave the shards, and never enter them again.
        retry_quarantined: try files again that could not be packed.

    Returns:
        ``rows`` and ``shards`` of the archive, ``packed`` rows of this call, ``labelled`` rows, ``quarantined`` files,
        ``left_out`` rows that were replaced or are duplicates, ``bytes`` of the shards, their ``digest``, the
        ``manifest_version``, ``labels``, which says what the label files matched, and the ``mlflow_run_id``.

    Raises:
        UsageError: there are no images, the labels name none of them or contradict themselves, or the shards are of
            another key.
        MedFocusError: not one of the images can be packed.
    """
    files = [labels] if isinstance(labels, str) else list(labels or ())
    with before_start():
        origin, target = locate(source, config.storage), locate(shards, config.storage)
        if not origin.is_folder():
            raise UsageError(f"{origin.uri}: no such folder or prefix; correct SOURCE")
        naming = Naming(Pseudonyms(load_key(config.deid, config.work)), config.deid.names == "keep")
        current = _current(target, naming)
        label_files = [locate(file, config.storage) for file in files]
    with (
        connected(config.cluster.address, config.cluster.cpus) as resources,
        open_catalog(config.work, f"{origin.uri} {target.uri} {naming.fingerprint}") as catalog,
    ):
        history = History(catalog, target, current, naming.pseudonyms)
        with before_start():
            history.read()
            _list(catalog, origin, target, naming, config)
            if mapping is None and audit is None:  # these need the headers of all files
                catalog.adopt_packed(retry_quarantined=retry_quarantined)
            survey(catalog, Surveyor(origin, naming.pseudonyms, mapping is not None))
            _check_images(catalog, origin, naming)
            if withdraw is not None:
                current = _withdraw(history, withdraw, naming)
            joined = labelling.label_items(catalog, label_files, origin, naming.pseudonyms, config)
            history.mark_due(withdrawn(target))
            history.warn_of_other_labels()
            if retry_quarantined:
                history.retry()
            history.note_earlier()
            labelling.assign_item_splits(catalog, config)
            labelling.set_first_days(catalog)
        with runs.run("pack", config) as active:
            totals = _pack(catalog, history, origin, target, naming, config, int(resources.get("CPU", 1)))
            refused = quarantine.write(target, catalog, naming, origin)
            manifest = _commit(history, target, current, naming, config)
            if mapping is not None:
                write_mapping(mapping, originals_of(catalog), naming.pseudonyms)
            if audit is not None:
                audit_of(catalog).write(audit)
            summary = _summary(manifest, totals, refused)
            runs.log_dataset("shards", manifest.digest, "pack")
            runs.log_metrics(summary)
            if summary["quarantined"]:
                log.warning(
                    "%d files cannot be packed; medfocus quarantine %s tells why", summary["quarantined"], target.uri
                )
            event("packed", **summary)
            return summary | {"labels": joined, "digest": manifest.digest, "mlflow_run_id": active.info.run_id}


def _current(target: Location, naming: Naming) -> Manifest | None:
    """The manifest to add to; None where there is none yet."""
    current = newest_manifest(target)
    if current is not None and current.key_fingerprint != naming.fingerprint:
        raise UsageError(
            f"{target.uri}: was packed under another key or with deid.names other than now, so that no image could be"
            " recognised; give the same key and names, or a new prefix"
        )
    return current


def _withdraw(history: History, file: str, naming: Naming) -> Manifest | None:
    """Remove patients from what is packed; returns the manifest without them.

    Args:
        history: what is packed; it is read again.
        file: text file with a PatientID, or the pseudonym of one, a line.
        naming: names of items and rows.
    """
    patients = patients_of(Path(file), history, naming)
    done = withdraw_patients(history.prefix, patients)
    event("withdrawn", patients=done.patients, rows=done.rows, shards=done.shards, manifest_version=done.version)
    current = newest_manifest(history.prefix)
    history.restart(current)
    return current


def _list(catalog: Catalog, origin: Location, target: Location, naming: Naming, config: Config) -> None:
    """List the source, and check that every node sees it and the prefix."""
    left_out = LeftOut()
    catalog.list_files(walk_source(origin, left_out), naming)
    left_out.log()
    first = [origin / file_of(name) for (name,) in catalog.query("SELECT name FROM files LIMIT 1")]
    if not first:
        rest = format_counts(_refused(catalog, naming) + Counter(junk=left_out.junk.total())) or "nothing is there"
        raise UsageError(f"{origin.uri}: holds no image that can be packed ({rest}); correct SOURCE")
    check_shared(config.storage, read=first, written=[target])


def _check_images(catalog: Catalog, origin: Location, naming: Naming) -> None:
    """Name the items that were found, and log what is no image; raises UsageError if there is no image."""
    catalog.name_items(naming)
    others = catalog.left_out()
    if not catalog.images():
        rest = format_counts(others + _refused(catalog, naming))
        raise UsageError(f"{origin.uri}: holds no image that can be packed ({rest}); correct SOURCE")
    if others:
        log.warning("%d files are no images by their bytes and are left out: %s", others.total(), format_counts(others))


def _refused(catalog: Catalog, naming: Naming) -> Counter[str]:
    """Number of files that cannot be packed, by the class of the error."""
    return Counter(error for _, _, error, _ in catalog.refusals(naming))


def _pack(
    catalog: Catalog, history: History, origin: Location, target: Location, naming: Naming, config: Config, cpus: int
) -> PackTotals:
    """Pack the items that are due."""
    total = catalog.images()
    due = catalog.one("SELECT count(*) FROM items WHERE due")
    if due < total:
        event("images packed by earlier calls", images=total - due)
    with progress("pack", total, total - due, runs.log_progress) as counter:
        totals = pack_portions(catalog, packer_of(origin, target, naming, config), cpus, counter)
    history.read()
    if totals.not_looked_at and config.burned_in.action != "keep":
        log.warning(
            "%d images that are not DICOM were not looked at for text in their pixels; set burned_in.ocr=always if"
            " names may be burned into them, or burned_in.action=keep if not",
            totals.not_looked_at,
        )
    return totals


def _commit(history: History, target: Location, current: Manifest | None, naming: Naming, config: Config) -> Manifest:
    """Commit the next version of the manifest, if anything has changed."""
    shards = history.next_shards(drop_duplicates=config.pack.duplicates == "drop")
    if not any(shard.rows for shard in shards):
        raise MedFocusError(f"{target.uri}: no image can be packed; medfocus quarantine {target.uri} tells why")
    files = set(target.files(".parquet"))
    if missing := sum(shard.name not in files for shard in shards):
        raise MedFocusError(
            f"{target.uri}: {missing} of {len(shards)} shards were written and are not there; check that all nodes"
            " write to the same place"
        )
    if current is not None and list(current.shards) == sorted(shards, key=lambda shard: shard.name):
        event("nothing is new", manifest_version=current.version)
        return current
    return write_manifest(target, shards, earlier=current, key_fingerprint=naming.fingerprint)


def _summary(manifest: Manifest, totals: PackTotals, refused: int) -> dict[str, Any]:
    """The figures of a run."""
    return {
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "packed": totals.rows,
        "labelled": sum(shard.labelled or 0 for shard in manifest.shards),
        "quarantined": refused,
        "left_out": sum(len(shard.replaced) for shard in manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "manifest_version": manifest.version,
    }
