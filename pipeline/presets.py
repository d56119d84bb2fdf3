"""Presets: the frozen models that fit together, each under one name, with the settings that they need.

A preset is data: ``load_config`` lays it between the defaults and the configuration file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A pair of frozen models.

    Args:
        summary: the models, for the help.
        cost: memory of a process that holds the models, rounded up from its peak, and CPU time of an image on one core.
        settings: values of the configuration by section and key.
        weights: names of the models as ``medfocus weights fetch`` takes them; empty where they come along.
    """

    summary: str
    cost: str
    settings: Mapping[str, Mapping[str, Any]]
    weights: tuple[str, ...] = ()


PRESETS: Mapping[str, Preset] = {
    "starter": Preset(
        "the small models that come along, trained on phantoms alone",
        "0.7 GB a process, 0.2 s an image on a CPU core",
        {"segment": {"model": "starter"}, "clip": {"model": "starter", "cut": 4}},
    ),
    "sam2.1-tiny+vit-b-16": Preset(
        "SAM2.1-tiny and CLIP ViT-B/16 of LAION-2B",
        "2.5 GB a process, 9 s an image on a CPU core",
        {
            "segment": {"model": "facebook/sam2.1-hiera-tiny"},
            "clip": {"model": "ViT-B-16", "weights": "laion2b_s34b_b88k", "cut": 9},
        },
        ("facebook/sam2.1-hiera-tiny", "ViT-B-16/laion2b_s34b_b88k"),
    ),
    "sam2.1-small+biomedclip": Preset(
        "SAM2.1-small and BiomedCLIP, which needs medfocus[biomedclip]",
        "2.5 GB a process, 10 s an image on a CPU core",
        {
            "segment": {"model": "facebook/sam2.1-hiera-small"},
            "clip": {"model": "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "cut": 9},
        },
        ("facebook/sam2.1-hiera-small", "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"),
    ),
}
