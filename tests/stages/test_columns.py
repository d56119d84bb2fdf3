"""What the docstring of each stage says of its columns, against what the stage does."""

import re

import numpy as np
import pytest

from medfocus.pipeline.config import Config
from medfocus.stages.classify import Classify
from medfocus.stages.decode import Decode
from medfocus.stages.embed import Embed
from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.segment import Segment
from medfocus.starter.phantoms import draw
from tests.conftest import png

SECTIONS = ["Resources", "Columns taken", "Columns added", "Columns removed", "Errors", "Args"]
CLASSES = ("solid mass", "ring lesion")


def sections(stage: type) -> dict[str, str]:
    """The text of each section of the docstring of a class, by its title."""
    parts = re.split(r"\n\n    ([A-Z][\w ]+):\n", stage.__doc__ or "")
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def columns(text: str) -> dict[str, tuple[str, str]]:
    """Type and shape of each column that a section documents, by its name."""
    lines = re.findall(r"^        (\w+): (\w+) \[(.*?)\]", text, re.MULTILINE)
    return {name: (kind, shape) for name, kind, shape in lines}


@pytest.mark.parametrize("stage", [Decode, Segment, Embed, Classify])
def test_every_stage_documents_the_same_sections(stage: type) -> None:
    assert list(sections(stage)) == SECTIONS


def test_stages_add_and_remove_the_columns_that_they_document(starter_sam2, starter_clip, starter_tokenizer) -> None:
    config = Config()
    model = PromptedCLIP(
        starter_clip,
        starter_tokenizer,
        PromptSettings(
            classes=CLASSES,
            template="a medical image showing {}",
            cut=config.clip.cut,
            focus="both",
            visual_prompts=2,
            text_context=2,
            class_context=False,
            class_offset=True,
        ),
    )
    batch = {
        "image_id": np.array(["a", "b"], object),
        "image": np.array([png(draw(index, size=64).image) for index in range(2)], object),
        "media_type": np.full(2, "image/png", object),
        "window": np.full((2, 2), 1000.0),
    }
    for stage in (
        Decode(size=starter_sam2.image_size, max_pixels=10**6),
        Segment(starter_sam2, config.segment.settings),
        Embed(model.tower, region=True, batch_size=2),
        Classify(model, temperature=1.0, accept_at=0.5, batch_size=2),
    ):
        documented = sections(type(stage))
        taken, added = columns(documented["Columns taken"]), columns(documented["Columns added"])
        removed = set(re.findall(r"\w+", documented["Columns removed"])) - {"None"}
        assert set(taken) <= set(batch), type(stage)
        out = stage(batch)
        assert set(out) - set(batch) == set(added), type(stage)
        assert set(batch) - set(out) == removed, type(stage)
        assert (out["error"] == "").all(), out["message"]
        for name, (kind, shape) in taken.items() | added.items():
            column = out.get(name, batch.get(name))
            assert str(column.dtype) == {"str": "object", "bytes": "object"}.get(kind, kind), name
            assert column.ndim == len(shape.split(",")), name
            if column.dtype == object:
                assert all(type(value).__name__ == kind for value in column), name
        batch = out
