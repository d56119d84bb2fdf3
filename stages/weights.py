"""Loads model weights; no other module does.

Nothing is unpickled: a checkpoint is a safetensors file, or a PyTorch file that is read with ``weights_only=True``. A
model is named by its package's own name (a SAM2 hub name, an open_clip architecture) or by a folder with its
architecture:

* SAM2: ``sam2.json`` with the keys ``config`` (a Hydra configuration of the sam2 package) and ``overrides``.
* CLIP: ``open_clip_config.json``, the format of open_clip's ``local-dir:`` schema. Where that names a text model of the
  hub, ``text/config.json`` in the folder is its configuration, so that none has to be fetched.

sam2 and open_clip are imported in the functions that need them: each import takes seconds, and a process seldom needs
both.
"""

import hashlib
import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medfocus.stages import torchvision_ops  # noqa: F401  before sam2 and open_clip

if TYPE_CHECKING:
    import open_clip
    from sam2.modeling.sam2_base import SAM2Base

VIDEO_PARTS = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
)
"""Prefixes of SAM2's tensors that only video tracking uses; a checkpoint for images may leave them out."""

CLIP_CONFIG, TEXT_CONFIG = "open_clip_config.json", "text/config.json"
"""Files of a CLIP's folder: the configuration of the model, and that of its Hugging Face text model."""

# Numbers that OpenAI's own state dicts hold beside the weights.
_OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}


class WeightsError(ValueError):
    """A checkpoint that cannot be used. The message is one line: the file, what is wrong, and how to correct it."""


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Check the SHA-256 of a file.

    Args:
        path: the file.
        expected: hexadecimal SHA-256, in either case.

    Raises:
        WeightsError: the file has another SHA-256.
    """
    actual = file_sha256(path)
    if actual != expected.lower():
        raise WeightsError(
            f"{path.name}: sha256 is {actual}, not the configured {expected}; fetch the file again or correct sha256"
        )


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint.

    The tensors may lie under ``model`` (SAM2) or ``state_dict`` (open_clip training), and their names may have the
    prefix ``module.`` of a distributed wrapper, which is removed.

    Args:
        path: a safetensors file, or a PyTorch file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsError: the file is missing or truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint; give the path of an existing file")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path.name}: not a whole checkpoint ({_first_line(error)}); fetch it again") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name}: holds pickled objects beside tensors and is not loaded; save the bare state dict"
            " as safetensors"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{path.name}: not a state dict of tensors; save the model's state_dict()")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def sam2_hub_file(model: str) -> str | None:
    """Name of the weights file of a SAM2 model on the hub; None where the sam2 package does not know the model."""
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    name: str | None = HF_MODEL_ID_TO_FILENAMES.get(model, (None, None))[1]
    return name


def sam2_image_size(model: str | Path) -> int:
    """Side in pixels of the square images that a SAM2 model takes; the model is not built.

    Args:
        model: as for ``load_sam2``.

    Raises:
        WeightsError: the name of the model is unknown.
    """
    from hydra import compose

    config, overrides = _sam2_architecture(model)
    return int(compose(config_name=config, overrides=overrides).model.image_size)


def load_sam2(
    model: str | Path,
    checkpoint: Path | None,
    *,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> "SAM2Base":
    """Load a SAM2 image model in evaluation mode, float32 and frozen.

    Args:
        model: a hub name of the sam2 package (``facebook/sam2.1-hiera-tiny``), or a folder with ``sam2.json``.
        checkpoint: the weights file; None draws random weights.
        image_size: side in pixels of the images that the model takes, a multiple of 32; None keeps the model's own. The
            sam2 package interpolates the position embeddings.
        device: the device that the model is moved to.
        seed: seed of the random weights.

    Returns:
        The model.

    Raises:
        WeightsError: the name of the model is unknown, or the checkpoint does not fit it.
    """
    from sam2.build_sam import build_sam2

    config, overrides = _sam2_architecture(model)
    if image_size is not None:
        overrides = [*overrides, f"++model.image_size={image_size}"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_sam2(config, None, device="cpu", hydra_overrides_extra=overrides)
    if checkpoint is not None:
        state = read_state_dict(checkpoint)
        missing, unexpected = network.load_state_dict(_as_float32(state), strict=False)
        missing = [name for name in missing if not name.startswith(VIDEO_PARTS)]
        _check_keys(checkpoint, str(model), missing, unexpected)
    return network.to(device).requires_grad_(False)


def load_clip(
    model: str | Path,
    checkpoint: Path | None,
    preprocess: Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> "open_clip.CLIP | open_clip.CustomTextCLIP":
    """Load a CLIP model in evaluation mode, float32 and frozen.

    Args:
        model: an architecture of open_clip (``ViT-B-16``), or a folder with ``open_clip_config.json``.
        checkpoint: the weights file, in any layout that open_clip converts; None draws random weights.
        preprocess: ``mean`` and ``std`` of the three channels, 0..1; None takes those of the architecture.
        device: the device that the model is moved to.
        seed: seed of the random weights.

    Returns:
        The model.

    Raises:
        WeightsError: the architecture is unknown, or the checkpoint does not fit it.
    """
    import open_clip

    name = _clip_name(model)
    with torch.random.fork_rng(devices=[]), _without_root_warnings():
        torch.manual_seed(seed)
        network = open_clip.create_model(
            name,
            load_weights=False,
            pretrained_image=False,
            pretrained_text=False,
            force_preprocess_cfg=dict(preprocess or {}),
            **_text_model(model),
        )
    if checkpoint is not None:
        _load_clip_state(network, model, checkpoint)
    return network.to(device).eval().requires_grad_(False)


def _load_clip_state(network: Any, model: str | Path, checkpoint: Path) -> None:
    """Load a checkpoint into a CLIP; raises WeightsError where it does not fit."""
    import open_clip

    # open_clip converts the layouts of other projects. This read checks that the file is complete and safe.
    stored = read_state_dict(checkpoint).keys()
    quick = any(isinstance(part, open_clip.transformer.QuickGELU) for part in network.modules())
    if stored >= _OPENAI_KEYS and not quick:
        raise WeightsError(
            f"{checkpoint.name}: OpenAI's weights are not of {model}, which has no QuickGELU; set clip.model to its"
            " -quickgelu variant"
        )
    try:
        missing, unexpected = open_clip.load_checkpoint(network, str(checkpoint), strict=False, weights_only=True)
    except (RuntimeError, KeyError, AssertionError) as error:
        raise WeightsError(
            f"{checkpoint.name}: does not fit {model} ({_first_line(error)}); choose the model it was trained as"
        ) from error
    _check_keys(checkpoint, str(model), missing, [name for name in unexpected if name not in _OPENAI_KEYS])


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a CLIP model: a callable from N texts to tokens, int64 [N, context length].

    Args:
        model: as for ``load_clip``.

    Raises:
        WeightsError: the architecture is unknown.
    """
    import open_clip

    return open_clip.get_tokenizer(_clip_name(model))


def _sam2_architecture(model: str | Path) -> tuple[str, list[str]]:
    """Hydra configuration and overrides of a SAM2 model."""
    # The import also registers the package's configurations with Hydra.
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    folder = Path(model)
    if (folder / "sam2.json").is_file():
        architecture = json.loads((folder / "sam2.json").read_text())
        return architecture["config"], list(architecture["overrides"])
    if str(model) in HF_MODEL_ID_TO_FILENAMES:
        return HF_MODEL_ID_TO_FILENAMES[str(model)][0], []
    known = ", ".join(HF_MODEL_ID_TO_FILENAMES)
    raise WeightsError(f"{model}: unknown SAM2 model; use starter, a folder with sam2.json, or one of {known}")


def _clip_name(model: str | Path) -> str:
    """The name by which open_clip knows a CLIP model."""
    if (Path(model) / CLIP_CONFIG).is_file():
        return f"local-dir:{model}"
    import open_clip

    if str(model) in open_clip.list_models():
        return str(model)
    raise WeightsError(
        f"{model}: unknown CLIP model; use starter, a folder with open_clip_config.json, or an architecture of"
        " open_clip.list_models()"
    )


def _text_model(model: str | Path) -> dict[str, Any]:
    """Settings by which open_clip takes the configuration of the text model from the folder, where it is there."""
    folder, text = Path(model), (Path(model) / TEXT_CONFIG).parent
    if not (folder / TEXT_CONFIG).is_file():
        return {}
    settings = json.loads((folder / CLIP_CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    return {"text_cfg": settings | {"hf_model_name": str(text), "hf_model_pretrained": False}}


@contextmanager
def _without_root_warnings() -> Iterator[None]:
    """Suppress open_clip's warning on the root logger that it loads no weights; they are loaded in a later step."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _as_float32(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, with those of floating point in float32."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _check_keys(checkpoint: Path, model: str, missing: list[str], unexpected: list[str]) -> None:
    """Raise WeightsError where tensors of a checkpoint are missing or unknown."""
    if missing or unexpected:
        example = (missing or unexpected)[0]
        raise WeightsError(
            f"{checkpoint.name}: does not fit {model}: {len(missing)} tensors missing, {len(unexpected)} not known"
            f" (such as {example}); choose the model it was trained as"
        )


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where it has none."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
