"""The methods that the benchmark compares. Each works on stored features, with any backbone.

A method is fitted to a few labelled examples and gives class logits of others. Its settings are the same for every data
set and every number of labels. They were chosen on phantoms of other seeds than those of the comparison.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.fewshot.examples import Examples
from medfocus.stages.prompt_settings import FOCUS_MODES, PromptSettings
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.tower import CachedTokens
from medfocus.stages.tuning import TrainingBatch, anneal, train_epoch

# Takes part only where its features are available.
ANCHOR = "linear probe, EfficientNet-Lite0 of ImageNet"
TEMPLATES = (
    "a medical image showing {}",
    "a picture showing {}",
    "an image with {}",
    "{}",
)


@dataclass(frozen=True)
class Task:
    """What all methods share.

    Args:
        clip: the frozen open_clip model.
        tokenizer: its tokenizer.
        classes: names of the classes, in the order of the logits.
        cut: number of blocks below the cut.
    """

    clip: Any
    tokenizer: Any
    classes: tuple[str, ...]
    cut: int

    @torch.inference_mode()
    def text(self) -> np.ndarray:
        """Embedding of each class, the mean over the templates, float32 [C, E], each of length 1."""
        means = []
        for name in self.classes:
            sentences = [template.format(name.replace("_", " ")) for template in TEMPLATES]
            means.append(self.clip.encode_text(self.tokenizer(sentences), normalize=True).mean(0))
        return F.normalize(torch.stack(means), dim=-1).numpy()

    @property
    def scale(self) -> float:
        """The factor that CLIP multiplies cosines with."""
        return float(self.clip.logit_scale.exp())


class Method(Protocol):
    """A classifier that is fitted once; ``masks`` says whether it uses the focus masks."""

    masks: bool

    def fit(self, task: Task, examples: Examples, seed: int) -> None:
        """Fit to labelled examples."""

    def logits(self, examples: Examples) -> np.ndarray:
        """Class logits float [N, C]."""


@dataclass
class ZeroShot:
    """CLIP's zero-shot classification, which uses no label."""

    view: str = "whole"
    masks: bool = False

    def fit(self, task: Task, examples: Examples, seed: int) -> None:
        """Embed the class names; the labels are not used."""
        self.task = task
        self.text = task.text()

    def logits(self, examples: Examples) -> np.ndarray:
        """Class logits float [N, C]."""
        return self.task.scale * examples.embeddings[self.view] @ self.text.T


@dataclass
class LinearProbe:
    """Logistic regression on an embedding, standardised (arXiv 2103.00020, section 3.2)."""

    view: str = "whole"
    masks: bool = False
    inverse_penalty: float = 0.1

    def fit(self, task: Task, examples: Examples, seed: int) -> None:
        """Fit to labelled examples."""
        self.scaler = StandardScaler().fit(examples.embeddings[self.view])
        targets = examples.targets(task.classes)
        self.model = LogisticRegression(C=self.inverse_penalty, max_iter=2000)
        self.model.fit(self.scaler.transform(examples.embeddings[self.view]), targets)
        self.count = len(task.classes)

    def logits(self, examples: Examples) -> np.ndarray:
        """Class logits float [N, C]."""
        log_probabilities = self.model.predict_log_proba(self.scaler.transform(examples.embeddings[self.view]))
        out = np.full((len(examples), self.count), -30.0)  # for a class without a label
        out[:, self.model.classes_] = log_probabilities
        return out


@dataclass
class TextInformedProbe:
    """LP++ (arXiv 2404.02285): class weights ``w + alpha * text``, by block coordinate descent.

    Step sizes are from the paper's Lipschitz constants. The start is the paper's data-driven one: class prototypes for
    ``w``, and for ``alpha`` their mean agreement with the text.
    """

    view: str = "whole"
    masks: bool = False
    steps: int = 300
    prior: float = 250.0

    def fit(self, task: Task, examples: Examples, seed: int) -> None:
        """Fit to labelled examples."""
        x = torch.from_numpy(examples.embeddings[self.view].astype(np.float64))
        y = torch.from_numpy(examples.targets(task.classes))
        text = torch.from_numpy(task.text().astype(np.float64))
        one_hot = F.one_hot(y, len(task.classes)).double()
        shots = one_hot.sum(0).clamp(min=1)
        agreement = x @ text.T
        w = one_hot.T @ x / shots[:, None]
        alpha = self.prior / shots.mean() * (one_hot * agreement).sum(0) / shots
        step_w = 4 * len(x) / float(torch.linalg.eigvalsh(x.T @ x)[-1])
        step_alpha = 4 * len(x) / float(agreement.square().sum(0).max())
        for _ in range(self.steps):
            for part in ("w", "alpha"):
                error = ((x @ w.T + alpha * agreement).softmax(1) - one_hot) / len(x)
                if part == "w":
                    w = w - step_w * error.T @ x
                else:
                    alpha = alpha - step_alpha * (error * agreement).sum(0)
        self.weight = (w + alpha[:, None] * text).numpy()

    def logits(self, examples: Examples) -> np.ndarray:
        """Class logits float [N, C]."""
        return examples.embeddings[self.view] @ self.weight.T


@dataclass
class CacheModel:
    """Tip-Adapter-F (arXiv 2207.09519): CLIP's logits plus those of near labelled images, whose keys are learned."""

    view: str = "whole"
    masks: bool = False
    share: float = 1.0  # the paper's alpha
    sharpness: float = 5.5  # the paper's beta
    epochs: int = 20
    learning_rate: float = 1e-3

    def fit(self, task: Task, examples: Examples, seed: int) -> None:
        """Fit to labelled examples."""
        torch.manual_seed(seed)
        x = torch.from_numpy(examples.embeddings[self.view].astype(np.float32))
        y = torch.from_numpy(examples.targets(task.classes))
        self.text, self.scale = torch.from_numpy(task.text()), task.scale
        self.values = F.one_hot(y, len(task.classes)).float()
        self.keys = x.clone().requires_grad_()
        optimizer = torch.optim.AdamW([self.keys], lr=self.learning_rate, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x)).split(256):
                optimizer.zero_grad()
                F.cross_entropy(self._logits(x[rows]), y[rows]).backward()
                optimizer.step()
            schedule.step()

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        near = torch.exp(-self.sharpness * (1 - x @ self.keys.T))
        return self.scale * x @ self.text.T + self.share * near @ self.values

    @torch.no_grad()
    def logits(self, examples: Examples) -> np.ndarray:
        """Class logits float [N, C]."""
        return self._logits(torch.from_numpy(examples.embeddings[self.view].astype(np.float32))).numpy()


@dataclass
class PromptTuning:
    """The project's own model and loss, with a choice of its learned parts and of the view of the image."""

    focus: str = "none"
    visual_prompts: int = 4
    text_context: int = 4
    class_offset: bool = True
    view: str = "whole"
    region: str = "masked"
    masks: bool = False
    template: str = TEMPLATES[0]
    epochs: int = 40
    most_steps: int = 200
    batch_size: int = 32
    learning_rate: float = 5e-3
    contrastive_weight: float = 0.5
    model: PromptedCLIP | None = field(default=None, init=False)

    def fit(self, task: Task, examples: Examples, seed: int) -> None:
        """Fit to labelled examples."""
        torch.manual_seed(seed)
        settings = PromptSettings(
            classes=task.classes,
            template=self.template,
            cut=task.cut,
            focus=self.focus,
            visual_prompts=self.visual_prompts,
            text_context=self.text_context,
            class_context=False,
            class_offset=self.class_offset,
        )
        model = PromptedCLIP(task.clip, task.tokenizer, settings)
        optimizer = torch.optim.AdamW(model.parameter_groups(self.learning_rate), weight_decay=1e-3)
        target = torch.from_numpy(examples.targets(task.classes))
        epochs = max(1, min(self.epochs, self.most_steps // math.ceil(len(target) / self.batch_size)))

        def logits(batch: TrainingBatch) -> torch.Tensor:
            return model.logits(*model(batch.whole, batch.focus, batch.region))

        for epoch in range(epochs):
            anneal(optimizer, epoch / epochs)
            order = torch.randperm(len(target)).split(self.batch_size)
            batches = (TrainingBatch(*self._inputs(examples, rows.numpy()), target[rows]) for rows in order)
            train_epoch(logits, optimizer, batches, self.contrastive_weight, partial(model.prior, len(target)))
        self.model = model

    @torch.inference_mode()
    def logits(self, examples: Examples) -> np.ndarray:
        """Class logits float [N, C]."""
        model = self.model
        assert model is not None
        text = model.text_embedding()
        parts = np.array_split(np.arange(len(examples)), max(1, len(examples) // 64))
        images = [model.image_embedding(*self._inputs(examples, rows)) for rows in parts]
        return model.logits(torch.cat(images), text).numpy()

    def _inputs(self, examples: Examples, rows: np.ndarray) -> tuple[CachedTokens, torch.Tensor, CachedTokens | None]:
        def view(name: str) -> CachedTokens:
            return CachedTokens(
                torch.from_numpy(examples.cls[name][rows]), torch.from_numpy(examples.memory[name][rows])
            )

        region = view(self.region) if FOCUS_MODES[self.focus].region else None
        return view(self.view), torch.from_numpy(examples.focus[rows]), region


def all_methods() -> dict[str, Method]:
    """A new, unfitted instance of every method, by its name in the table."""
    return {
        "zero-shot, several templates": ZeroShot(),
        "linear probe": LinearProbe(),
        ANCHOR: LinearProbe(view="imagenet"),
        "text-informed probe (LP++)": TextInformedProbe(),
        "cache model (Tip-Adapter-F)": CacheModel(),
        "text context only (CoOp)": PromptTuning(visual_prompts=0, class_offset=False),
        "visual prompts only": PromptTuning(text_context=0, class_offset=False),
        "focus: none": PromptTuning(),
        "regions laid over in colour": PromptTuning(view="overlay", masks=True),
        "linear probe on the crop": LinearProbe(view="crop", masks=True),
        "crop beside the image": PromptTuning(focus="masked_image", region="crop", masks=True),
        "focus: masked_image": PromptTuning(focus="masked_image", masks=True),
        "focus: attention": PromptTuning(focus="attention", masks=True),
        "focus: both": PromptTuning(focus="both", masks=True),
    }
