"""The Python API: what the commands do, as functions with the same configuration and the same results.

Each function does what the command of its name does. A result has the keys that ``--json`` prints. Logging, stdout
and signals stay as the caller has set them. A Ray that the caller has started is used and left running; otherwise each
call starts one and ends it.

The examples run one after the other, in a folder with ``images/`` and ``labels.csv``:

>>> import medfocus
>>> config = medfocus.Config(seed=1, train={"epochs": 2}, segment={"points_per_side": 4})
"""

import os
from collections.abc import Sequence
from typing import Any, TypedDict, cast

from medfocus.pipeline.config import Config

# What every function takes for a place: a local path or an ``s3://`` URI.
Place = str | os.PathLike[str]


class PackResult(TypedDict):
    """What ``pack`` returns.

    The archive has ``rows`` in ``shards``, ``labelled`` rows among them, and ``packed`` rows are of this call.
    ``quarantined`` files cannot be packed. ``left_out`` rows are in shards and do not count: duplicates, and images
    that were replaced. ``bytes`` is the size of the shards, ``digest`` the SHA-256 that stands for their content, and
    ``manifest_version`` the number of the version of the manifest. ``labels`` has the counts of what the label files
    matched; None where there are none.
    """

    rows: int
    shards: int
    packed: int
    labelled: int
    quarantined: int
    left_out: int
    bytes: int
    manifest_version: int
    labels: dict[str, Any] | None
    digest: str
    mlflow_run_id: str


class EmbedResult(TypedDict):
    """What ``embed`` returns.

    Of ``rows`` labelled rows, ``resumed`` were finished by an earlier call and ``embedded`` by this one.
    ``retried_shards`` counts the retries after transient errors. ``model_key`` stands for what made the features.
    """

    rows: int
    embedded: int
    resumed: int
    retried_shards: int
    quarantined: int
    seconds: float
    images_per_second: float
    model_key: str
    mlflow_run_id: str


class TrainResult(TypedDict):
    """What ``train`` returns.

    ``model_uri`` names the registered model. ``held_out`` says how the held-out rows were chosen (by patient, by
    neighbours, by image), and ``held_out_accuracy`` and ``held_out_coverage`` (share of accepted rows, 0..1) are of
    those rows. ``temperature`` and ``accept_at`` are the calibration.
    """

    epochs: int
    training_rows: int
    held_out_rows: int
    held_out_accuracy: float
    held_out_coverage: float
    held_out: str
    held_out_groups: int
    rows_without_patient: int
    near_duplicates_apart: int
    temperature: float
    accept_at: float
    learned_parameters: int
    resumed_epochs: int
    model_uri: str
    mlflow_run_id: str


class ScoreResult(TypedDict):
    """What ``score`` returns.

    Each of ``rows`` is in the predictions (``scored``) or in the quarantine (``quarantined``). ``resumed`` rows were
    finished by an earlier call.
    """

    rows: int
    scored: int
    quarantined: int
    resumed: int
    retried_shards: int
    seconds: float
    images_per_second: float
    model_version: str
    mlflow_run_id: str


class EvaluateResult(TypedDict):
    """What ``evaluate`` returns.

    ``rows`` predictions had a label. ``metrics`` has for each metric its value and its 95 % interval (``low``,
    ``high``), and ``sites`` the same for each site. ``intervals`` says what the bootstrap draws: patients or images.
    """

    accuracy: float
    macro_auroc: float | None
    rows: int
    unlabelled: int
    unpredicted: int
    quarantined: int
    rows_without_patient: int
    intervals: str
    model_version: str
    mlflow_run_id: str
    metrics: dict[str, dict[str, Any]]
    sites: dict[str, dict[str, dict[str, Any]]]
    site_intervals: dict[str, str]


class QuarantineCause(TypedDict):
    """One cause of quarantine: the stage, the class of the error, the number of rows, and one of their messages."""

    stage: str
    error: str
    rows: int
    message: str


class QuarantineResult(TypedDict):
    """What ``quarantine`` returns: the number of quarantined rows, and their causes, the most frequent first."""

    quarantined: int
    causes: list[QuarantineCause]


def pack(
    source: Place,
    shards: Place,
    *,
    labels: Place | Sequence[Place] | None = None,
    audit: Place | None = None,
    mapping: Place | None = None,
    withdraw: Place | None = None,
    retry_quarantined: bool = False,
    config: Config | None = None,
) -> PackResult:
    """Pack the images of an archive into shards, without what identifies a person.

    Packing again adds what is new. A call that was stopped continues when it is repeated.

    Args:
        source: folder or prefix of images, DICOM, zip and tar files. Files are recognised by their bytes.
        shards: prefix to write to.
        labels: label file, or several; the first that gives a value counts. None takes the class of each image from its
            folder.
        audit: local file to write what was removed to, by attribute and counts.
        mapping: local file to write the ids and paths of each pseudonym to.
        withdraw: text file with a PatientID a line; these patients leave the shards.
        retry_quarantined: try files again that could not be packed.
        config: the configuration; None takes the defaults.

    Raises:
        UsageError: the call is wrong; nothing was written.
        MedFocusError: not one image can be packed.

    Example:
        >>> packed = medfocus.pack("images", "shards", labels="labels.csv", config=config)
        >>> packed["rows"], packed["quarantined"]
        (16, 0)
    """
    from medfocus.pipeline.commands import pack as command

    files = [] if labels is None else [labels] if isinstance(labels, str | os.PathLike) else labels
    options = {"audit": audit, "mapping": mapping, "withdraw": withdraw}
    result = command.run(
        config or Config(),
        os.fspath(source),
        os.fspath(shards),
        [os.fspath(file) for file in files],
        **{name: None if place is None else os.fspath(place) for name, place in options.items()},
        retry_quarantined=retry_quarantined,
    )
    return cast(PackResult, result)


def embed(
    shards: Place,
    features: Place,
    *,
    overwrite: bool = False,
    retry_quarantined: bool = False,
    config: Config | None = None,
) -> EmbedResult:
    """Keep masks and tokens of the labelled rows for training. A call that was stopped continues when it is repeated.

    Args:
        shards: prefix that ``pack`` wrote.
        features: prefix to write to.
        overwrite: whether to remove what ``features`` holds first.
        retry_quarantined: whether to take shards with quarantined rows again.
        config: the configuration; None takes the defaults.

    Raises:
        UsageError: the call is wrong; nothing was written.
        MedFocusError: some shards cannot be finished, or too many rows are in quarantine.

    Example:
        >>> embedded = medfocus.embed("shards", "features", config=config)
        >>> embedded["embedded"]
        16
    """
    from medfocus.pipeline.commands import embed as command

    options = {"overwrite": overwrite, "retry_quarantined": retry_quarantined}
    return cast(EmbedResult, command.run(config or Config(), os.fspath(shards), os.fspath(features), **options))


def train(features: Place, *, name: str = "medfocus", config: Config | None = None) -> TrainResult:
    """Tune prompts on the features and register the model. A call that was stopped continues when it is repeated.

    Args:
        features: prefix that ``embed`` has finished.
        name: name of the registered model.
        config: the configuration; None takes the defaults. The frozen models are those that made the features.

    Raises:
        UsageError: the call is wrong, or the labels do not suffice.
        MedFocusError: the training failed.

    Example:
        >>> trained = medfocus.train("features", name="example", config=config)
        >>> trained["model_uri"]
        'models:/example/1'
    """
    from medfocus.pipeline.commands import train as command

    return cast(TrainResult, command.run(config or Config(), os.fspath(features), name))


def score(
    shards: Place,
    out: Place,
    *,
    model: str,
    overwrite: bool = False,
    retry_quarantined: bool = False,
    config: Config | None = None,
) -> ScoreResult:
    """Score every row of an archive. A call that was stopped continues when it is repeated.

    Args:
        shards: prefix that ``pack`` wrote.
        out: prefix to write to; each row ends in ``predictions/`` or in ``quarantine/`` below it.
        model: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or a folder with a model.
        overwrite: whether to remove what ``out`` holds first.
        retry_quarantined: whether to take shards with quarantined rows again.
        config: the configuration; None takes the defaults. The frozen models are those of ``model``.

    Raises:
        UsageError: the call is wrong; nothing was written.
        MedFocusError: some shards cannot be finished, or the run was stopped for its many quarantined rows.
        TooManyQuarantined: all is done, but more rows are in quarantine than ``score.max_quarantined`` allows. Its
            ``result`` is what would have been returned.

    Example:
        >>> scored = medfocus.score("shards", "out", model=trained["model_uri"], config=config)
        >>> scored["rows"] == scored["scored"] + scored["quarantined"]
        True
    """
    from medfocus.pipeline.commands import score as command

    options = {"overwrite": overwrite, "retry_quarantined": retry_quarantined}
    return cast(ScoreResult, command.run(config or Config(), os.fspath(shards), os.fspath(out), model, **options))


def evaluate(out: Place, labels: Place, *, config: Config | None = None) -> EvaluateResult:
    """Compare predictions with labels: metrics with bootstrap intervals, overall and for each site.

    Args:
        out: prefix that ``score`` wrote.
        labels: prefix of shards with labels, or a label file.
        config: the configuration; None takes the defaults.

    Raises:
        UsageError: there are no predictions, they are of several models, or the labels do not fit them.

    Example:
        >>> evaluated = medfocus.evaluate("out", "labels.csv", config=config)
        >>> evaluated["rows"], 0 <= evaluated["accuracy"] <= 1
        (16, True)
    """
    from medfocus.pipeline.commands import evaluate as command

    return cast(EvaluateResult, command.run(config or Config(), os.fspath(out), os.fspath(labels)))


def quarantine(out: Place, *, config: Config | None = None) -> QuarantineResult:
    """Count the quarantined rows of a prefix by their cause.

    Args:
        out: prefix that ``pack``, ``embed`` or ``score`` wrote.
        config: the configuration; None takes the defaults.

    Raises:
        UsageError: there is no such prefix.

    Example:
        >>> medfocus.quarantine("out", config=config)
        {'quarantined': 0, 'causes': []}
    """
    from medfocus.pipeline.commands import quarantine as command

    return cast(QuarantineResult, command.count_causes(config or Config(), os.fspath(out)))
