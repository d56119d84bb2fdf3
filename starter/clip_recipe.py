"""How the starter CLIP is trained: open_clip's contrastive loss on phantoms and their captions, from nothing.

Half of the images are crops about a lesion, so that its kind, a few pixels of a whole image, is learnt large first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stages import torchvision_ops  # noqa: F401  before open_clip

# isort: split
from open_clip import ClipLoss

from stages.tower import ImageTower
from stages.weights import load_clip, load_tokenizer
from starter.phantoms import Phantom

ARCHITECTURE = Path(__file__).parent / "clip"
_CROPPED = 0.5
# Side of a crop, as a share of the image's, and how far from its middle the lesion's centre may be.
_CROP_SIDE, _OFF_CENTRE = (0.25, 0.8), 0.3


class Recipe:
    """One training step and what is saved of the model."""

    batch_size = 64
    learning_rate = 8e-4
    image_size = 224

    def __init__(self, device: str, seed: int):
        self.model = load_clip(ARCHITECTURE, None, device=device, seed=seed).train().requires_grad_(True)
        self.parameters = list(self.model.parameters())
        self.tokenizer = load_tokenizer(ARCHITECTURE)
        self.tower = ImageTower(self.model, 1)
        self.contrast = ClipLoss()
        self.device = device
        self.random = np.random.default_rng(seed)

    def loss(self, phantoms: Sequence[Phantom], share: float) -> torch.Tensor:
        """Contrastive loss of a batch of images and their captions."""
        views = np.stack([self._view(phantom) for phantom in phantoms])[..., None]
        pixels = torch.from_numpy(views).to(self.device)
        text = self.tokenizer([phantom.caption for phantom in phantoms]).to(self.device)
        image = self.model.encode_image(self.tower.normalise(pixels), normalize=True)
        return self.contrast(image, self.model.encode_text(text, normalize=True), self.model.logit_scale.exp())

    def _view(self, phantom: Phantom) -> np.ndarray:
        """The image or a crop about one of its lesions, uint8 [s, s] as the tower takes it."""
        image = Image.fromarray(phantom.image)
        side, size = self.tower.image_size, phantom.image.shape[0]
        box = (0.0, 0.0, float(size), float(size))
        if len(phantom.lesions) and self.random.uniform() < _CROPPED:
            lesion = phantom.lesions[int(self.random.integers(len(phantom.lesions)))]
            reach = size * self.random.uniform(*_CROP_SIDE)
            middle = [np.nonzero(lesion)[axis].mean() for axis in (1, 0)] + reach * self.random.uniform(
                -_OFF_CENTRE, _OFF_CENTRE, 2
            )
            left, top = np.clip(middle - reach / 2, 0, size - reach)
            box = (left, top, left + reach, top + reach)
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box))

    def state(self) -> dict[str, torch.Tensor]:
        """All weights in half precision."""
        return {name: value.half().contiguous() for name, value in self.model.state_dict().items()}
