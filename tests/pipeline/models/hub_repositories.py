"""Repositories for the hub of the tests: models in the layouts that their owners publish, of any size."""

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertTokenizer

from medfocus.stages.weights import CLIP_CONFIG, load_clip
from tests.hub_server import Hub

SAM2 = "facebook/sam2.1-hiera-tiny"
CLIP, CLIP_REPOSITORY = "ViT-B-16/laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
TEXT_MODEL = "microsoft/BERT"
WORDS = ["a", "medical", "image", "showing", "lesion", "solid", "mass", "ring", "cyst"]


def add_stand_ins(hub: Hub) -> None:
    """Repositories of SAM2.1-tiny and ViT-B/16 whose weights are no weights: to be copied, not to be loaded."""
    hub.add(SAM2, sam2__1_hiera_tiny__pt=b"s" * 5000, README__md=b"a card", training__yaml=b"not for us")
    hub.add(CLIP_REPOSITORY, open_clip_model__safetensors=b"c" * 6000, open_clip_pytorch_model__bin=b"b" * 2000)


def add_clip_with_bert(hub: Hub, name: str, *, vision: dict[str, object], bert: dict[str, int], half: bool) -> None:
    """A CLIP as BiomedCLIP is published: its text tower and its tokenizer are named by another repository of the hub.

    The PyTorch file holds random weights.
    """
    text_folder = hub.add(TEXT_MODEL, LICENSE=b"terms")
    BertConfig(**bert).save_pretrained(text_folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    folder = hub.add(name)
    tokenizer.save_pretrained(folder)
    text = {
        "hf_model_name": TEXT_MODEL,
        "hf_tokenizer_name": TEXT_MODEL,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 64,
    }
    model = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / CLIP_CONFIG).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    state = _drawn(folder, text_folder).state_dict()
    torch.save({key: value.half() if half else value for key, value in state.items()}, folder / _WEIGHTS)


_WEIGHTS = "open_clip_pytorch_model.bin"


def _drawn(folder: Path, text_folder: Path) -> torch.nn.Module:
    """The model of a repository with random weights; the configuration of its text model is read from a folder."""
    (folder / "text").symlink_to(text_folder)
    try:
        return load_clip(folder, None, seed=1)
    finally:
        (folder / "text").unlink()
