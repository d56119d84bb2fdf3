"""Sections of what comes in: how images become shards, and what may leave of those who are on them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from medfocus.pipeline.config.section import Section
from medfocus.pipeline.errors import UsageError
from medfocus.stages.burned_in_settings import Action, BurnedInSettings, Look, TemplateError, read_templates


class PackSection(Section):
    """How images become shards."""

    rows_per_shard: int = Field(256, ge=1, description="most images in a shard")
    bytes_per_shard: int = Field(128 << 20, ge=1 << 10, description="most bytes of encoded images in a shard")
    bits: int = Field(
        8,
        ge=8,
        le=16,
        multiple_of=8,
        description="bits of a sample of DICOM and NIfTI: 8 after windowing, or 16 with the window beside them",
    )
    window: int = Field(
        0, ge=0, description="which window of a DICOM file is shown, from 0; the first where there is none"
    )
    frames: Literal["all", "middle", "every"] = Field(
        "all", description="frames of a file with several that are packed: all, the middle one, or every frame_step-th"
    )
    frame_step: int = Field(1, ge=1, description="distance of the frames, where frames is every")
    duplicates: Literal["drop", "keep"] = Field(
        "drop", description="images with the same pixels: one is kept, the others are left out; or all are kept"
    )
    test_share: float = Field(
        0, ge=0, le=0.5, description="share of the patients that are kept for tests, and never trained on; 0: none"
    )


class LabelsSection(Section):
    """Label files, and folders that name classes."""

    mapping: str | None = Field(
        None, description="YAML file with a line for each spelling of a class, such as mal: malignant; null drops it"
    )
    folders: Literal["auto", "always", "never"] = Field(
        "auto",
        description="whether folders name classes where there is no label file; auto: unless they may name people",
    )


class DeidSection(Section):
    """De-identification. The secret key is MEDFOCUS_KEY, else the key file, else one made in the work folder."""

    key_file: str | None = Field(
        None, description="file with the secret key of pseudonyms, 32 bytes or more, which its owner alone may read"
    )
    names: Literal["pseudonym", "keep"] = Field(
        "pseudonym", description="image_id and source_uri of shards: a pseudonym, or the path that the source has: keep"
    )
    dates: Literal["offset", "year", "none"] = Field(
        "offset", description="date of a study in shards: days from the patient's first study, the year, or nothing"
    )


class DecodeSection(Section):
    """What an image may be."""

    max_pixels: int = Field(100_000_000, ge=1, description="more pixels than this are refused before decoding")


class BurnedInSection(Section):
    """Text that is burned into pixels."""

    action: Action = Field(
        "quarantine", description="what happens to images with text, or at risk of it: quarantine, black_out or keep"
    )
    ocr: Look = Field(
        "auto",
        description="auto looks at DICOM images at risk if medfocus[ocr] is installed; always looks at all images, PNG"
        " and the like too; never trusts headers alone",
    )
    min_length: int = Field(3, ge=1, description="letters and digits of the shortest line that counts as text")
    templates: str | None = Field(None, description="YAML file that says where devices write; for black_out")

    def settings(self) -> BurnedInSettings:
        """The settings of ``stages.burned_in.BurnedInText``, with the templates read.

        Raises:
            UsageError: the file of templates cannot be used.
        """
        try:
            templates = () if self.templates is None else read_templates(Path(self.templates))
        except TemplateError as error:
            raise UsageError(str(error)) from error
        return BurnedInSettings(self.action, self.ocr, self.min_length, templates)
