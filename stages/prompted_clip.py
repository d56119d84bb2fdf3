"""A frozen CLIP with the learned prompts of MedFocus.

The idea is MedFocusCLIP's (arXiv 2501.03839): regions found by SAM2 are the visual prompt of a frozen CLIP. What
is learned, and nothing else:

* deep visual prompts, a few tokens a block above the cut (VPT-deep, arXiv 2203.12119), which CLS attends to. They
  enter through attention of their own whose result is added under a gate that starts at zero (zero-initialised
  attention, arXiv 2303.16199, section 3.2), so that the untrained model is the frozen one;
* one strength a block of a bias on the CLS attention logits, ``strength * log(eps + focus)``, zero at the start;
* text context (CoOp, arXiv 2109.01134), as offsets to the embeddings of the template's first words, shared by the
  classes or for each of its own, zero at the start;
* an offset to each class's embedding (TaskRes, arXiv 2211.10277), zero at the start: where the text tower does not know
  a class's name, no context makes it the right one. The fewer labels there are, the shorter it is kept (``prior``);
* the fusion of the whole-image and the region embedding, ``whole + fusion * (region - whole)``, zero at the start.

With every learned part at its initial value the model reproduces open_clip's ``encode_image`` and ``encode_text``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from medfocus.stages.prompt_settings import PromptSettings
from medfocus.stages.tower import CachedTokens, ImageTower

FOCUS_EPSILON = 0.01
# How many times faster the scalars that start at zero learn: few steps must take them to where they matter.
_SCALARS, _SCALARS_RATE = ("prompt_gates", "focus_strength", "fusion"), 30.0
# Weight of the prior on the classes' offsets, chosen on phantoms with 1 to 100 labels a class.
_OFFSET_PRIOR = 4.0


class PromptedCLIP(nn.Module):
    """Class logits from tokens below the cut; see the module for what is learned.

    Args:
        clip: frozen CLIP (``stages.weights.load_clip``).
        tokenizer: its tokenizer (``stages.weights.load_tokenizer``).
        settings: shape and meaning of the learned part.
    """

    text: torch.Tensor

    def __init__(self, clip: Any, tokenizer: Any, settings: PromptSettings):
        super().__init__()
        self.settings = settings
        self.clip = clip
        self.tower = ImageTower(clip, settings.cut)
        sentences = [settings.template.format(name.replace("_", " ")) for name in settings.classes]
        self.register_buffer("text", tokenizer(sentences), persistent=False)
        blocks, width = len(self.tower.blocks), self.tower.width
        learned: dict[str, torch.Tensor] = {}
        if settings.visual_prompts:
            learned["visual_prompts"] = torch.randn(blocks, settings.visual_prompts, width) * 0.02
            learned["prompt_gates"] = torch.zeros(blocks, self.tower.heads)
        if settings.focus in ("attention", "both"):
            learned["focus_strength"] = torch.zeros(blocks)
        if settings.text_context:
            contexts = len(settings.classes) if settings.class_context else 1
            width = _token_embedding(clip).embedding_dim
            learned["text_context"] = torch.zeros(contexts, settings.text_context, width)
        if settings.class_offset:
            with torch.no_grad():
                one = clip.encode_text(self.text[:1].to(clip.logit_scale.device))
            learned["class_offset"] = torch.zeros(len(settings.classes), one.shape[1])
        if settings.uses_region:
            learned["fusion"] = torch.zeros(1)
        self.learned = nn.ParameterDict({name: nn.Parameter(value) for name, value in learned.items()})

    def forward(
        self, whole: CachedTokens, focus: torch.Tensor, region: CachedTokens | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of images and classes, each of length 1.

        Args:
            whole: B images at the cut (``remember``).
            focus: [B, L-1], share of each patch that the mask covers.
            region: the same of the images' best regions; None unless the settings use it.

        Returns:
            Image embeddings float32 [B, E] and class embeddings float32 [C, E].
        """
        return self.image_embedding(whole, focus, region), self.text_embedding()

    def cache_tokens(self, tokens: torch.Tensor) -> CachedTokens:
        """What the learned part needs of images, from the tokens [B, L, D] that leave the tower's lower part."""
        return self.tower.cache_tokens(tokens.float())

    def image_embedding(self, whole: CachedTokens, focus: torch.Tensor, region: CachedTokens | None) -> torch.Tensor:
        embedded = self._upper(whole, focus.float())
        if "fusion" not in self.learned or region is None:
            return embedded
        of_region = self._upper(region, None)  # the region fills its view
        return F.normalize(embedded + self.learned["fusion"] * (of_region - embedded), dim=-1)

    def text_embedding(self) -> torch.Tensor:
        with self._context():
            text = self.clip.encode_text(self.text)
        if "class_offset" in self.learned:
            # An offset to the text of length 1, which is normalised once, so that an offset of zero changes no bit.
            text = text + text.norm(dim=-1, keepdim=True) * self.learned["class_offset"]
        return F.normalize(text, dim=-1)

    def logits(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Cosine similarity [B, C] times CLIP's own (frozen) scale."""
        return self.clip.logit_scale.exp() * image @ text.T

    def prior(self, rows: int) -> torch.Tensor:
        """What the loss of each of so many training rows has in it for the offsets' lengths: a normal prior on them."""
        if "class_offset" not in self.learned:
            return torch.zeros((), device=self.text.device)
        return _OFFSET_PRIOR / rows * self.learned["class_offset"].square().sum()

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """What an optimizer is given: each group of the learned part with its ``peak`` learning rate."""
        scalars = [value for name, value in self.learned.items() if name in _SCALARS]
        others = [value for name, value in self.learned.items() if name not in _SCALARS]
        groups = [{"params": scalars, "peak": rate * _SCALARS_RATE}, {"params": others, "peak": rate}]
        return [group for group in groups if group["params"]]

    def learned_state(self) -> dict[str, torch.Tensor]:
        """A copy of the learned part only, on the CPU."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.learned.items()}

    def load_learned(self, state: dict[str, torch.Tensor]) -> None:
        """Put a learned part in place.

        Raises:
            ValueError: its tensors are not those of the settings.
        """
        expected = {name: tuple(value.shape) for name, value in self.learned.items()}
        found = {name: tuple(value.shape) for name, value in state.items()}
        if expected != found:
            raise ValueError(
                f"the prompts hold {found}, the settings ask for {expected}; load them with their own JSON"
            )
        with torch.no_grad():
            for name, value in state.items():
                self.learned[name].copy_(value)

    def _upper(self, remembered: CachedTokens, focus: torch.Tensor | None) -> torch.Tensor:
        bias = prompts = gates = None
        if "focus_strength" in self.learned and focus is not None:
            shares = torch.log(FOCUS_EPSILON + focus)
            bias = [strength * shares for strength in self.learned["focus_strength"]]
        if "visual_prompts" in self.learned:
            prompts, gates = list(self.learned["visual_prompts"]), list(self.learned["prompt_gates"])
        return F.normalize(self.tower.upper(remembered, bias, prompts, gates), dim=-1)

    @contextmanager
    def _context(self) -> Iterator[None]:
        """Add the learned context to the embeddings of the first words, whatever the text tower."""
        context = self.learned["text_context"] if self.settings.text_context else None
        if context is None:
            yield
            return

        def add(_module: nn.Module, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
            # Position 0 is the start token.
            return embedded + F.pad(context, (0, 0, 1, embedded.shape[1] - 1 - context.shape[1]))

        handle = _token_embedding(self.clip).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def _token_embedding(clip: Any) -> nn.Embedding:
    """The word embedding of a CLIP's text tower: its largest ``nn.Embedding``."""
    text = getattr(clip, "text", None)
    modules: Sequence[nn.Module] = list((text if isinstance(text, nn.Module) else clip).modules())
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    return max(embeddings, key=lambda module: module.num_embeddings)
