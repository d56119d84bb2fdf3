"""How the starter CLIP is trained: open_clip's contrastive loss on phantoms and their captions, from nothing.

What decides the kind of a lesion is a few of an image's patches, and a caption tells of it in two words: from captions
alone the tower learns organs and machines, and no kinds, for thousands of steps. So each patch also learns what kind
of lesion it shows, which parts of the anatomy and, of the whole image, which machine made it, under a linear head that
is thrown away. Half of the images are crops about a lesion, so that its kind is seen large too; of a quarter, nothing
is left but the lesions and what is near them, so that a masked image is nothing strange.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import binary_dilation

from medfocus.stages import torchvision_ops  # noqa: F401  before open_clip

# isort: split
from open_clip import ClipLoss

from medfocus.stages.tower import ImageTower
from medfocus.stages.weights import load_clip, load_tokenizer
from medfocus.starter.anatomy import MODALITIES, PARTS
from medfocus.starter.lesions import CLASSES
from medfocus.starter.phantoms import Phantom

ARCHITECTURE = Path(__file__).parent / "clip"
# Outputs of the linear head: kinds of lesion and none, parts of the anatomy, machines.
_SEEN = (len(CLASSES) + 1, len(PARTS), len(MODALITIES))
# Share of a patch that a lesion must cover to be seen there.
_COVERED = 0.2
_CROPPED, _MASKED = 0.5, 0.25
# How far about a lesion, in pixels, a masked image shows; and the mean colour that stands for what it does not.
_NEAR, _HIDDEN = (2, 16), 128
# Side of a crop, as a share of the image's, and how far from its middle the lesion's centre may be.
_CROP_SIDE, _OFF_CENTRE = (0.25, 0.8), 0.3

Box = tuple[float, float, float, float]


class Recipe:
    """One training step and what is saved of the model."""

    batch_size = 32
    learning_rate = 1e-3
    image_size = 224
    # That there are misleading marks, and where, is for the focus mask to tell.
    decoys = False

    def __init__(self, device: str, seed: int, start: Path | None):
        self.model = load_clip(ARCHITECTURE, start, device=device, seed=seed).train().requires_grad_(True)
        self.tokenizer = load_tokenizer(ARCHITECTURE)
        self.tower = ImageTower(self.model, 1)
        self.seeing = torch.nn.Linear(self.tower.width, sum(_SEEN)).to(device)
        self.parameters = [*self.model.parameters(), *self.seeing.parameters()]
        self.contrast = ClipLoss()
        self.device = device
        self.random = np.random.default_rng(seed)

    def loss(self, phantoms: Sequence[Phantom], share: float) -> torch.Tensor:
        """Loss of a batch, after a share of all steps."""
        phantoms = [self._mask(phantom) for phantom in phantoms]
        boxes = [self._box(phantom) for phantom in phantoms]
        side = self.tower.image_size
        views = [
            np.asarray(Image.fromarray(phantom.image).resize((side, side), Image.Resampling.BICUBIC, box))
            for phantom, box in zip(phantoms, boxes, strict=True)
        ]
        images = self.tower.normalise(torch.from_numpy(np.stack(views)[..., None]).to(self.device))
        text = self.tokenizer([phantom.caption for phantom in phantoms]).to(self.device)
        visual = self.tower.visual
        tokens = visual.ln_post(visual.transformer(visual._embeds(images)))
        image = F.normalize(tokens[:, 0] @ visual.proj, dim=-1)
        contrast = self.contrast(image, self.model.encode_text(text, normalize=True), self.model.logit_scale.exp())
        kinds, parts, machines = self.seeing(tokens[:, 1:]).split(_SEEN, -1)
        anatomy = F.binary_cross_entropy_with_logits(parts, self._parts(phantoms, boxes))
        made_by = torch.tensor([MODALITIES.index(phantom.modality) for phantom in phantoms], device=self.device)
        machine = F.cross_entropy(machines.mean(1), made_by)
        return contrast + self._kind_loss(kinds, self._kinds(phantoms, boxes)) + anatomy + machine

    def _kind_loss(self, logits: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the kind of lesion, or none, at every patch, of logits [B, P, 5] and kinds int64 [B, P].

        Patches with and without a lesion count alike in all: a few in a hundred have one, and the plain mean would be
        low for a tower that never finds any.
        """
        each = F.cross_entropy(logits.flatten(0, 1), kinds.flatten(), reduction="none")
        lesion = kinds.flatten() < len(CLASSES)
        return (each[lesion].mean() + each[~lesion].mean()) / 2

    def _kinds(self, phantoms: Sequence[Phantom], boxes: Sequence[Box]) -> torch.Tensor:
        """Kind of lesion that covers enough of each patch of the views, the last class for none, int64 [B, P]."""
        kinds = np.full((len(phantoms), self.tower.grid[0] * self.tower.grid[1]), len(CLASSES))
        for row, (phantom, box) in enumerate(zip(phantoms, boxes, strict=True)):
            if len(phantom.lesions):
                covered = self._covered(np.any(phantom.lesions, axis=0), box)
                kinds[row, covered > _COVERED] = CLASSES.index(phantom.label)
        return torch.from_numpy(kinds).to(self.device)

    def _parts(self, phantoms: Sequence[Phantom], boxes: Sequence[Box]) -> torch.Tensor:
        """Share of each patch that each part of the anatomy covers, float32 [B, P, parts]."""
        shares = np.zeros((len(phantoms), self.tower.grid[0] * self.tower.grid[1], len(PARTS)), np.float32)
        for row, (phantom, box) in enumerate(zip(phantoms, boxes, strict=True)):
            for name, mask in phantom.anatomy.items():
                shares[row, :, PARTS.index(name)] = self._covered(mask, box)
        return torch.from_numpy(shares).to(self.device)

    def _covered(self, mask: np.ndarray, box: Box) -> np.ndarray:
        """Share of each patch of a view that a mask covers, float [P]."""
        down, across = self.tower.grid
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(picture.resize((across, down), Image.Resampling.BOX, box)).reshape(-1) / 255

    def _mask(self, phantom: Phantom) -> Phantom:
        """The phantom itself or, of some, nothing but the lesions and what is near them."""
        if not len(phantom.lesions) or self.random.uniform() >= _MASKED:
            return phantom
        shown = binary_dilation(phantom.lesions.any(0), iterations=int(self.random.integers(*_NEAR)))
        anatomy = {name: mask & shown for name, mask in phantom.anatomy.items()}
        return replace(phantom, image=np.where(shown, phantom.image, np.uint8(_HIDDEN)), anatomy=anatomy)

    def _box(self, phantom: Phantom) -> Box:
        """What of an image is shown: all of it, or a square about one of its lesions."""
        size = phantom.image.shape[0]
        if not len(phantom.lesions) or self.random.uniform() >= _CROPPED:
            return 0.0, 0.0, float(size), float(size)
        lesion = phantom.lesions[int(self.random.integers(len(phantom.lesions)))]
        side = size * self.random.uniform(*_CROP_SIDE)
        away = side * self.random.uniform(-_OFF_CENTRE, _OFF_CENTRE, 2)
        middle = np.array([np.nonzero(lesion)[axis].mean() for axis in (1, 0)]) + away
        left, top = np.clip(middle - side / 2, 0, size - side).tolist()
        return left, top, left + side, top + side

    def state(self) -> dict[str, torch.Tensor]:
        """All weights in half precision."""
        return {name: value.half().contiguous() for name, value in self.model.state_dict().items()}
