"""A frozen CLIP with the learned prompts of MedFocus.

The idea is that of MedFocusCLIP (arXiv 2501.03839): regions found by SAM2 are the visual prompt of a frozen CLIP. Five
parts are learned, each of them zero at the start or behind a gate that is:

* deep visual prompts, a few tokens in each block above the cut (VPT-deep, arXiv 2203.12119). CLS attends to them in a
  separate attention, whose output is added under a gate (zero-initialised attention, arXiv 2303.16199, section 3.2);
* for each block, the strength of a bias on the attention logits of CLS, ``strength * log(eps + focus)``;
* the text context (CoOp, arXiv 2109.01134), as offsets to the embeddings of the first words of the template. All
  classes share one, or each has its own;
* an offset to the embedding of each class (TaskRes, arXiv 2211.10277), for names of classes that the text tower does
  not know. A prior keeps the offsets short, the more so the fewer labels there are (``PromptedCLIP.prior``);
* the fusion of the whole-image and the region embedding, ``whole + fusion * (region - whole)``.

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
"""Added to the focus before its logarithm, so that a patch without focus has a finite bias."""
# The scalars that start at zero have a higher learning rate, by this factor: a training has few steps.
_SCALARS, _SCALARS_RATE = ("prompt_gates", "focus_strength", "fusion"), 30.0
# Weight of the prior on the class offsets. It was chosen on phantoms with 1 to 100 labels for each class.
_OFFSET_PRIOR = 4.0


class PromptedCLIP(nn.Module):
    """CLIP with its learned part: from tokens at the cut to class logits.

    Args:
        clip: the frozen CLIP (``stages.weights.load_clip``).
        tokenizer: its tokenizer (``stages.weights.load_tokenizer``).
        settings: shape and meaning of the learned part.

    Attributes:
        text: int64 [C, context length], the sentence of each class as tokens.
        learned: the learned tensors by name.
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
        if settings.uses_attention:
            learned["focus_strength"] = torch.zeros(blocks)
        if settings.text_context:
            contexts = len(settings.classes) if settings.class_context else 1
            width = _token_embedding(clip).embedding_dim
            learned["text_context"] = torch.zeros(contexts, settings.text_context, width)
        if settings.class_offset:
            with torch.no_grad():
                embedding = clip.encode_text(self.text[:1].to(clip.logit_scale.device))
            learned["class_offset"] = torch.zeros(len(settings.classes), embedding.shape[1])
        if settings.uses_region:
            learned["fusion"] = torch.zeros(1)
        self.learned = nn.ParameterDict({name: nn.Parameter(value) for name, value in learned.items()})

    def forward(
        self, whole: CachedTokens, focus: torch.Tensor, region: CachedTokens | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed images and classes.

        Args:
            whole: the cached tokens of B images (``cache_tokens``).
            focus: float [B, L-1] in 0..1, share of each patch that the focus mask covers.
            region: the cached tokens of the best regions; None unless the settings use them.

        Returns:
            Image embeddings float32 [B, E] and class embeddings float32 [C, E], each of length 1.
        """
        return self.image_embedding(whole, focus, region), self.text_embedding()

    def cache_tokens(self, tokens: torch.Tensor) -> CachedTokens:
        """The cached tokens of B images, from the tokens [B, L, D] that leave the lower part of the tower."""
        return self.tower.cache_tokens(tokens.float())

    def image_embedding(self, whole: CachedTokens, focus: torch.Tensor, region: CachedTokens | None) -> torch.Tensor:
        """Image embeddings float32 [B, E], each of length 1; the arguments are those of ``forward``."""
        whole_embedding = self._upper(whole, focus.float())
        if "fusion" not in self.learned or region is None:
            return whole_embedding
        region_embedding = self._upper(region, None)  # without a focus: the region fills its crop
        fusion = self.learned["fusion"]
        return F.normalize(whole_embedding + fusion * (region_embedding - whole_embedding), dim=-1)

    def text_embedding(self) -> torch.Tensor:
        """Class embeddings float32 [C, E], each of length 1."""
        with self._context():
            text = self.clip.encode_text(self.text)
        if "class_offset" in self.learned:
            # The offset is relative to a text embedding of length 1. It is scaled here, and the sum is normalised once,
            # so that an offset of zero changes no bit.
            text = text + text.norm(dim=-1, keepdim=True) * self.learned["class_offset"]
        return F.normalize(text, dim=-1)

    def logits(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Class logits: cosine similarities times CLIP's own (frozen) scale.

        Args:
            image: float [B, E], image embeddings of length 1.
            text: float [C, E], class embeddings of length 1.

        Returns:
            Float [B, C].
        """
        logits: torch.Tensor = self.clip.logit_scale.exp() * image @ text.T
        return logits

    def prior(self, rows: int) -> torch.Tensor:
        """The term of the mean loss that a normal prior on the class offsets adds.

        Args:
            rows: number of training rows, over which the prior is spread.

        Returns:
            Scalar; 0 where the model has no class offsets.
        """
        if "class_offset" not in self.learned:
            return torch.zeros((), device=self.text.device)
        penalty: torch.Tensor = _OFFSET_PRIOR / rows * self.learned["class_offset"].square().sum()
        return penalty

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """The parameter groups for an optimizer, each with its ``peak`` learning rate.

        Args:
            rate: the learning rate; that of the scalars is higher by a constant factor.
        """
        scalars = [value for name, value in self.learned.items() if name in _SCALARS]
        others = [value for name, value in self.learned.items() if name not in _SCALARS]
        groups = [{"params": scalars, "peak": rate * _SCALARS_RATE}, {"params": others, "peak": rate}]
        return [group for group in groups if group["params"]]

    def learned_state(self) -> dict[str, torch.Tensor]:
        """A copy of the learned tensors by name, on the CPU."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.learned.items()}

    def load_learned(self, state: dict[str, torch.Tensor]) -> None:
        """Load learned tensors.

        Args:
            state: tensors by name, as ``learned_state`` gives them.

        Raises:
            ValueError: names or shapes do not match the settings.
        """
        expected = {name: tuple(value.shape) for name, value in self.learned.items()}
        actual = {name: tuple(value.shape) for name, value in state.items()}
        if expected != actual:
            raise ValueError(
                f"the prompts hold {actual}, the settings ask for {expected}; load them with their own JSON"
            )
        with torch.no_grad():
            for name, value in state.items():
                self.learned[name].copy_(value)

    def _upper(self, cached: CachedTokens, focus: torch.Tensor | None) -> torch.Tensor:
        """Embeddings float [B, E] of length 1; without a focus the attention of CLS has no bias."""
        bias = prompts = gates = None
        if "focus_strength" in self.learned and focus is not None:
            log_focus = torch.log(FOCUS_EPSILON + focus)
            bias = [strength * log_focus for strength in self.learned["focus_strength"]]
        if "visual_prompts" in self.learned:
            prompts, gates = list(self.learned["visual_prompts"]), list(self.learned["prompt_gates"])
        return F.normalize(self.tower.upper(cached, bias, prompts, gates), dim=-1)

    @contextmanager
    def _context(self) -> Iterator[None]:
        """Add the learned context to the word embeddings while the block runs, for any text tower."""
        context = self.learned["text_context"] if self.settings.text_context else None
        if context is None:
            yield
            return

        def add_context(_module: nn.Module, _inputs: Any, words: torch.Tensor) -> torch.Tensor:
            # Position 0 is the start token.
            return words + F.pad(context, (0, 0, 1, words.shape[1] - 1 - context.shape[1]))

        handle = _token_embedding(self.clip).register_forward_hook(add_context)
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
