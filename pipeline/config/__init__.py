"""The one configuration tree: typed, every key documented, defaults for a laptop."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from medfocus.cluster.resources import Demand
from medfocus.pipeline.config.intake import BurnedInSection, DecodeSection, DeidSection, LabelsSection, PackSection
from medfocus.pipeline.config.section import Section
from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.presets import PRESETS
from medfocus.pipeline.yaml_text import read_mapping, without_quotes
from medfocus.stages.prompt_settings import FOCUS_MODES, Focus, PromptSettings
from medfocus.stages.segment_settings import SegmentSettings

__all__ = [
    "BurnedInSection",
    "ClusterSection",
    "Config",
    "DecodeSection",
    "DeidSection",
    "EvaluateSection",
    "LabelsSection",
    "PackSection",
    "Section",
    "StorageSection",
    "documented_keys",
    "load_config",
]


class StorageSection(Section):
    """Object storage. Credentials come from the usual environment variables and profile, never from here."""

    s3_endpoint: str | None = Field(None, description="URL of an S3 service other than AWS; else AWS_ENDPOINT_URL")
    s3_region: str | None = Field(None, description="region of the bucket; else AWS_REGION or AWS_DEFAULT_REGION")
    anonymous: bool = Field(False, description="whether object storage is read without credentials: a public bucket")
    shared: bool = Field(
        False, description="whether every node of a cluster mounts the folders that local paths name; it is probed"
    )
    cache: str = Field("~/.cache/medfocus", description="folder on each node where fetched weights are kept")
    weights: str | None = Field(
        None,
        description="folder or s3:// prefix that medfocus weights fetch made; models of the hub are taken from there",
    )


class ClusterSection(Section):
    """Where the work runs."""

    address: str | None = Field(
        None,
        description="Ray address: 'auto' for the cluster this machine belongs to; empty takes RAY_ADDRESS, else starts"
        " one here",
    )
    cpus: int | None = Field(None, ge=1, description="CPUs of a cluster started here; all of them when empty")
    gpus: int | None = Field(
        None, ge=1, description="GPUs that a run shall use, which the autoscaler is asked for; empty: all it can start"
    )
    workers: int | None = Field(
        None, ge=1, description="processes with models that a run shall use, in place of gpus; empty: one for each CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the models: auto takes GPUs where there are some"
    )
    wait_minutes: float = Field(15, ge=0, description="longest wait for the first node that has room for the models")

    @property
    def demand(self) -> Demand:
        """What a run asks of the cluster."""
        return Demand(self.gpus, self.workers, self.device)

    @model_validator(mode="after")
    def _one_number(self) -> "ClusterSection":
        if self.gpus is not None and self.workers is not None:
            raise ValueError("gpus and workers are both set, and each decides the number of processes; leave one empty")
        return self


class SegmentSection(Section):
    """Region finding with SAM2."""

    model: str = Field(
        "starter", description="starter, a sam2 hub name such as facebook/sam2.1-hiera-tiny, or a folder"
    )
    weights: str | None = Field(
        None, description="local path, s3:// URI or hub name; empty means the weights that belong to the model"
    )
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="expected SHA-256 of the weights file")
    image_size: int | None = Field(
        None,
        ge=64,
        multiple_of=32,
        description="side in pixels of the images SAM2 is given; empty means the model's own",
    )
    points_per_side: int = Field(10, ge=1, le=64, description="points of the prompt grid along each side")
    regions: int = Field(16, ge=1, le=64, description="best candidate masks whose union is the focus mask")
    min_area: float = Field(0.0005, ge=0, lt=1, description="smallest share of the image a region may cover")
    max_area: float = Field(0.5, gt=0, le=1, description="largest share of the image a region may cover")
    prior_area: float = Field(0.01, gt=0, lt=1, description="share of the image that a region most likely covers")
    prior_spread: float = Field(1.0, gt=0, description="width of the area prior, in natural logarithms of the share")
    min_stability: float = Field(0.3, ge=0, le=1, description="candidates less stable than this are dropped")
    max_overlap: float = Field(
        0.5, gt=0, le=1, description="a candidate that overlaps a better one by more IoU is dropped"
    )
    min_relative_score: float = Field(
        0.003, ge=0, le=1, description="a candidate that scores less than this share of the best one's score is dropped"
    )
    margin: float = Field(3.0, ge=0, description="logits by which the focus mask reaches beyond its regions")
    batch_size: int | None = Field(
        None, ge=1, description="images in one pass of the encoder; empty means 1 on a CPU and 8 on a GPU"
    )
    prompts_per_pass: int | None = Field(
        None, ge=1, description="points times images in a pass of the decoder; empty: at most 25 on a CPU, 64 on a GPU"
    )

    @property
    def settings(self) -> SegmentSettings:
        """The settings of ``stages.segment.Segment``."""
        return SegmentSettings(**self.model_dump(include={field.name for field in fields(SegmentSettings)}))

    @model_validator(mode="after")
    def _areas_in_order(self) -> "SegmentSection":
        if self.min_area >= self.max_area:
            raise ValueError(f"min_area {self.min_area} must be below max_area {self.max_area}")
        return self


class ClipSection(Section):
    """The frozen CLIP."""

    model: str = Field(
        "starter", description="starter, an open_clip architecture such as ViT-B-16, an hf-hub: name, or a folder"
    )
    weights: str | None = Field(
        None, description="local path, s3:// URI or open_clip tag such as openai; empty means the model's own"
    )
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$", description="expected SHA-256 of the weights file")
    cut: int = Field(4, ge=1, description="blocks below the cut are frozen; their output tokens are kept as features")
    views: int = Field(
        1, ge=1, le=32, description="views of each labelled image that are kept: itself, and augmented ones to train on"
    )
    batch_size: int = Field(32, ge=1, description="images in one pass of the tower")


class ModelSection(Section):
    """The learned part: prompts above the cut."""

    focus: Focus = Field("both", description="none, masked_image (the best region beside the image), attention, both")
    visual_prompts: int = Field(4, ge=0, le=64, description="learned visual tokens a block above the cut")
    text_context: int = Field(4, ge=0, le=16, description="learned context vectors added to the template's words")
    class_context: bool = Field(False, description="each class learns a context of its own; else they share one")
    class_offset: bool = Field(True, description="each class learns an offset to its embedding")
    template: str = Field(
        "a medical image showing {}", pattern=r"\{\}", description="sentence whose {} is replaced by the class"
    )

    @field_validator("template")
    @classmethod
    def _takes_one_class(cls, template: str) -> str:
        try:
            places = [place for place in Formatter().parse(template) if place[1] is not None]
        except ValueError as error:  # a single brace
            raise ValueError(f"{template!r} has a brace without its pair; write {{{{ and }}}} for braces") from error
        if [place[1:] for place in places] != [("", "", None)]:
            raise ValueError(f"{template!r} must have {{}} once, for the class, and no other field in braces")
        return template

    @property
    def uses_region(self) -> bool:
        """Whether the focus mode needs the tokens of the best region."""
        return FOCUS_MODES[self.focus].region

    def prompts(self, classes: Iterable[str], cut: int) -> PromptSettings:
        """Settings of the learned part for these classes, in alphabetical order, above a cut."""
        return PromptSettings(classes=tuple(sorted(set(classes))), cut=cut, **self.model_dump())


class TrainSection(Section):
    """Prompt tuning."""

    workers: int = Field(1, ge=1, description="training processes")
    epochs: int = Field(40, ge=1, description="most passes over the training rows")
    batch_size: int = Field(32, ge=1, description="rows a step on each worker")
    learning_rate: float = Field(5e-3, gt=0, description="AdamW's peak learning rate, decayed to 0 by a cosine")
    weight_decay: float = Field(1e-3, ge=0, description="AdamW's weight decay")
    contrastive_weight: float = Field(0.5, ge=0, le=1, description="lambda: share of the contrastive term in the loss")
    folds: int = Field(
        3, ge=2, le=10, description="parts of the labelled rows; each is held out once, to choose epochs and calibrate"
    )
    patience: int = Field(10, ge=1, description="epochs without a better loss of the held-out rows before stopping")
    target_sensitivity: float = Field(
        0.9, ge=0, le=1, description="sensitivity every class shall reach among accepted predictions; others: refer"
    )


class ScoreSection(Section):
    """Scoring an archive."""

    accept_at: float | None = Field(
        None, ge=0, le=1, description="confidence from which a prediction is accepted; empty: what training fitted"
    )
    max_quarantined: float = Field(0.05, ge=0, le=1, description="share of quarantined rows above which score exits 3")


class EvaluateSection(Section):
    """Metrics."""

    resamples: int = Field(1000, ge=10, description="bootstrap resamples behind each 95 % interval")
    calibration_bins: int = Field(15, ge=2, description="equal-width confidence bins of the calibration error")


class TrackingSection(Section):
    """MLflow. The store is MLFLOW_TRACKING_URI, else SQLite in the work folder."""

    experiment: str = Field("medfocus", min_length=1, max_length=250, description="MLflow experiment of the runs")


class Config(Section):
    """Everything a run depends on."""

    work: str = Field("work", description="folder for what a run keeps on this machine: tracking store, checkpoints")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    storage: StorageSection = Field(default_factory=StorageSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    pack: PackSection = Field(default_factory=PackSection)
    labels: LabelsSection = Field(default_factory=LabelsSection)
    deid: DeidSection = Field(default_factory=DeidSection)
    decode: DecodeSection = Field(default_factory=DecodeSection)
    burned_in: BurnedInSection = Field(default_factory=BurnedInSection)
    segment: SegmentSection = Field(default_factory=SegmentSection)
    clip: ClipSection = Field(default_factory=ClipSection)
    model: ModelSection = Field(default_factory=ModelSection)
    train: TrainSection = Field(default_factory=TrainSection)
    score: ScoreSection = Field(default_factory=ScoreSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)


def load_config(file: str | None = None, settings: Sequence[str] = (), preset: str | None = None) -> Config:
    """Load the defaults, then the preset, then the YAML file, then each ``section.key=value`` in order.

    A value is the text that is written; quotes around it are YAML's. The type of the key decides what the text means,
    so that a key for texts takes ``2024``, ``on`` or ``a: b`` as they are.

    Raises:
        UsageError: the file cannot be read, or a key or the preset is unknown, or a value is out of its range.
    """
    tree = {} if file is None else read_mapping(Path(file))
    if preset is not None:
        tree = _over_preset(tree, preset)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {setting}: expected section.key=value")
        _assign(tree, key.strip().split("."), without_quotes(text.strip()))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_one_line(error)) from error


def documented_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every key with its default and description, in the order of the tree."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from documented_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default, field.description or ""


def _over_preset(tree: dict[str, Any], preset: str) -> dict[str, Any]:
    """The values of a file, and those of a preset where the file has none."""
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset}: unknown; choose one of {', '.join(PRESETS)}")
    base = {section: dict(values) for section, values in PRESETS[preset].settings.items()}
    for section, values in tree.items():
        if isinstance(values, dict) and section in base:
            base[section] |= values
        else:
            base[section] = values
    return base


# Not by OmegaConf's update, which would read ``${...}`` in a value as a reference.
def _assign(tree: dict[str, Any], keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        branch = tree.setdefault(key, {})
        if not isinstance(branch, dict):
            raise UsageError(f"{'.'.join(keys)}: {key} is a value, not a section")
        tree = branch
    tree[keys[-1]] = value


def _one_line(error: ValidationError) -> str:
    """The first problem of a validation error, as one line with the mend."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, [name for name, _, _ in documented_keys()], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; medfocus COMMAND --help lists the keys"
        return f"{key}: unknown configuration key{hint}"
    if problem["type"] == "value_error":  # a check of more than one key
        return f"{key}: {problem['ctx']['error']}; correct it in --config or --set"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    mend = "put it in quotes" if problem["type"] == "string_type" and problem["input"] else "correct it"
    return f"{key}: {message}, found {problem['input']!r}; {mend} in --config or --set"
