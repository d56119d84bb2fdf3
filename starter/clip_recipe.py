"""The training recipe of the starter CLIP: open_clip's contrastive loss on phantoms and their captions, from scratch.

The kind of a lesion is visible in a few patches, and a caption has two words about it. From captions alone the tower
learns organs and modalities, but no kinds, for thousands of steps. A linear head on the patches, which is discarded
afterwards, therefore learns three more targets: the kind of lesion in each patch, the parts of the anatomy in each
patch, and the modality of the image. Half of the images are crops about a lesion, as the model sees a region. In a
quarter all but the surroundings of the lesions is masked out, as in a masked image.
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
"""The folder with the architecture of the model."""
# Outputs of the linear head: kinds of lesion and none, parts of the anatomy, modalities.
_HEAD_OUTPUTS = (len(CLASSES) + 1, len(PARTS), len(MODALITIES))
# Share of a patch that a lesion must cover to be the patch's target.
_LEAST_COVER = 0.2
# Shares of the images that are cropped and masked.
_CROP_SHARE, _MASK_SHARE = 0.5, 0.25
# Pixels around a lesion that a masked image keeps, and the grey value of the rest.
_SURROUNDINGS, _MASK_VALUE = (2, 16), 128
# Side of a crop as a share of the image's, and largest distance of the lesion from its centre as a share of the crop's.
_CROP_SIDE, _OFF_CENTRE = (0.25, 0.8), 0.3

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a crop in pixels."""


class Recipe:
    """The model, its training loss, and the weights that are saved.

    Args:
        device: ``cpu`` or ``cuda``.
        seed: seed of the weights and of the crops and masks.
        start: weights of an earlier training; None draws random weights.

    Attributes:
        batch_size: phantoms in one step.
        learning_rate: peak learning rate.
        image_size: side of a phantom in pixels.
        decoys: whether the phantoms have decoys. They have none: the focus mask, not CLIP, is to tell a decoy.
        dense_head: the linear head on the patches; it is not saved.
    """

    batch_size = 32
    learning_rate = 1e-3
    image_size = 224
    decoys = False

    def __init__(self, device: str, seed: int, start: Path | None):
        self.model = load_clip(ARCHITECTURE, start, device=device, seed=seed).train().requires_grad_(True)
        self.tokenizer = load_tokenizer(ARCHITECTURE)
        self.tower = ImageTower(self.model, 1)
        self.dense_head = torch.nn.Linear(self.tower.width, sum(_HEAD_OUTPUTS)).to(device)
        self.parameters = [*self.model.parameters(), *self.dense_head.parameters()]
        self.contrastive_loss = ClipLoss()
        self.device = device
        self.random = np.random.default_rng(seed)

    def loss(self, phantoms: Sequence[Phantom], share: float) -> torch.Tensor:
        """The loss of a batch.

        Args:
            phantoms: the batch.
            share: share of all steps that have passed, 0..1; this recipe does not change with it.

        Returns:
            Scalar.
        """
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
        contrastive = self.contrastive_loss(
            image, self.model.encode_text(text, normalize=True), self.model.logit_scale.exp()
        )
        kinds, parts, modalities = self.dense_head(tokens[:, 1:]).split(_HEAD_OUTPUTS, -1)
        anatomy = F.binary_cross_entropy_with_logits(parts, self._parts(phantoms, boxes))
        modality = torch.tensor([MODALITIES.index(phantom.modality) for phantom in phantoms], device=self.device)
        modality_loss = F.cross_entropy(modalities.mean(1), modality)
        return contrastive + self._kind_loss(kinds, self._kinds(phantoms, boxes)) + anatomy + modality_loss

    def _kind_loss(self, logits: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the kind of lesion, or none, in every patch.

        Patches with a lesion and patches without have the same total weight. A few in a hundred have one, and a plain
        mean would be low for a tower that never finds any.

        Args:
            logits: float [B, P, 5].
            kinds: int64 [B, P].

        Returns:
            Scalar.
        """
        each = F.cross_entropy(logits.flatten(0, 1), kinds.flatten(), reduction="none")
        lesion = kinds.flatten() < len(CLASSES)
        return (each[lesion].mean() + each[~lesion].mean()) / 2

    def _kinds(self, phantoms: Sequence[Phantom], boxes: Sequence[Box]) -> torch.Tensor:
        """The kind of lesion that covers enough of each patch, int64 [B, P]; the last class is none."""
        kinds = np.full((len(phantoms), self.tower.grid[0] * self.tower.grid[1]), len(CLASSES))
        for row, (phantom, box) in enumerate(zip(phantoms, boxes, strict=True)):
            if len(phantom.lesions):
                cover = self._cover(np.any(phantom.lesions, axis=0), box)
                kinds[row, cover > _LEAST_COVER] = CLASSES.index(phantom.label)
        return torch.from_numpy(kinds).to(self.device)

    def _parts(self, phantoms: Sequence[Phantom], boxes: Sequence[Box]) -> torch.Tensor:
        """The share of each patch that each part of the anatomy covers, float32 [B, P, parts]."""
        shares = np.zeros((len(phantoms), self.tower.grid[0] * self.tower.grid[1], len(PARTS)), np.float32)
        for row, (phantom, box) in enumerate(zip(phantoms, boxes, strict=True)):
            for name, mask in phantom.anatomy.items():
                shares[row, :, PARTS.index(name)] = self._cover(mask, box)
        return torch.from_numpy(shares).to(self.device)

    def _cover(self, mask: np.ndarray, box: Box) -> np.ndarray:
        """The share of each patch of a crop that a mask covers, float [P]."""
        down, across = self.tower.grid
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(picture.resize((across, down), Image.Resampling.BOX, box)).reshape(-1) / 255

    def _mask(self, phantom: Phantom) -> Phantom:
        """The phantom itself or, for a share of them, masked out except for the surroundings of the lesions."""
        if not len(phantom.lesions) or self.random.uniform() >= _MASK_SHARE:
            return phantom
        visible = binary_dilation(phantom.lesions.any(0), iterations=int(self.random.integers(*_SURROUNDINGS)))
        anatomy = {name: mask & visible for name, mask in phantom.anatomy.items()}
        return replace(phantom, image=np.where(visible, phantom.image, np.uint8(_MASK_VALUE)), anatomy=anatomy)

    def _box(self, phantom: Phantom) -> Box:
        """The crop of a phantom: the whole image, or a square about one of its lesions."""
        size = phantom.image.shape[0]
        if not len(phantom.lesions) or self.random.uniform() >= _CROP_SHARE:
            return 0.0, 0.0, float(size), float(size)
        lesion = phantom.lesions[int(self.random.integers(len(phantom.lesions)))]
        side = size * self.random.uniform(*_CROP_SIDE)
        offset = side * self.random.uniform(-_OFF_CENTRE, _OFF_CENTRE, 2)
        middle = np.array([np.nonzero(lesion)[axis].mean() for axis in (1, 0)]) + offset
        left, top = np.clip(middle - side / 2, 0, size - side).tolist()
        return left, top, left + side, top + side

    def state(self) -> dict[str, torch.Tensor]:
        """The weights that are saved: all of the model, in half precision."""
        return {name: value.half().contiguous() for name, value in self.model.state_dict().items()}
