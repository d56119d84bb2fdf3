"""How the starter CLIP is trained: open_clip's contrastive loss on phantoms and their captions, from nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stages import torchvision_ops  # noqa: F401  before open_clip

# isort: split
from open_clip import ClipLoss

from stages.tower import ImageTower
from stages.weights import load_clip, load_tokenizer
from starter.phantoms import Phantom

ARCHITECTURE = Path(__file__).parent / "clip"


class Recipe:
    """One training step and what is saved of the model."""

    batch_size = 64
    learning_rate = 8e-4
    image_size = 112

    def __init__(self, device: str, seed: int):
        self.model = load_clip(ARCHITECTURE, None, device=device, seed=seed).train().requires_grad_(True)
        self.parameters = list(self.model.parameters())
        self.tokenizer = load_tokenizer(ARCHITECTURE)
        self.tower = ImageTower(self.model, 1)
        self.contrast = ClipLoss()
        self.device = device

    def loss(self, phantoms: Sequence[Phantom]) -> torch.Tensor:
        """Contrastive loss of a batch of images and their captions."""
        pixels = torch.from_numpy(np.stack([phantom.image for phantom in phantoms])[..., None]).to(self.device)
        text = self.tokenizer([phantom.caption for phantom in phantoms]).to(self.device)
        image = self.model.encode_image(self.tower.normalise(pixels), normalize=True)
        return self.contrast(image, self.model.encode_text(text, normalize=True), self.model.logit_scale.exp())

    def state(self) -> dict[str, torch.Tensor]:
        """All weights in half precision."""
        return {name: value.half().contiguous() for name, value in self.model.state_dict().items()}
