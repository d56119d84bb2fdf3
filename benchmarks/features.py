"""``python -m benchmarks.features``: what training from stored features saves, with full-size models.

An epoch of prompt tuning of ViT-B/16, cut after block 9, on the same images: from stored features; from the images with
their masks stored; and from the images alone, with SAM2.1-tiny. Weights are random: they decide nothing about time.
Prints the table and exits 1 where a ratio is missed.
"""

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from medfocus.pipeline.config import Config, SegmentSection
from medfocus.stages.batch import Batch
from medfocus.stages.decode import Decode
from medfocus.stages.embed import Embed
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.segment import Segment
from medfocus.stages.tower import CachedTokens, ImageTower
from medfocus.stages.tuning import prompt_loss
from medfocus.stages.weights import load_clip, load_sam2, load_tokenizer
from medfocus.starter.phantoms import CLASSES, draw

IMAGES, SEGMENTED, SIDE, CUT = 16, 4, 512, 9
SAM2, CLIP = "facebook/sam2.1-hiera-tiny", "ViT-B-16"
# The largest share of an epoch's time that one from features may take.
OF_STORED_MASKS, OF_EVERYTHING = 1 / 5, 1 / 20


def encoded(count: int) -> Batch:
    """Phantoms as JPEG files, as a batch that enters ``Decode``."""
    files = []
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(draw(index, size=SIDE).image).convert("RGB").save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return {
        "image_id": np.array([str(index) for index in range(count)], object),
        "image": np.array(files, object),
        "media_type": np.full(count, "image/jpeg", object),
    }


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Epoch:
    """The parts of an epoch over the same images, each timed by itself."""

    def __init__(self) -> None:
        clip = load_clip(CLIP, None)
        settings = Config().model.prompts(CLASSES, CUT)
        self.model = PromptedCLIP(clip, load_tokenizer(CLIP), settings)
        self.embed = Embed(ImageTower(clip, CUT), region=settings.uses_region, batch_size=IMAGES)
        finder = SegmentSection(batch_size=SEGMENTED).settings
        sam2 = load_sam2(SAM2, None)
        self.segment, self.decode = Segment(sam2, finder), Decode(size=sam2.image_size, max_pixels=10**8)
        self.target = torch.arange(IMAGES) % len(CLASSES)

    def measure(self) -> dict[str, float]:
        """Seconds for each part and ``IMAGES`` images; the region finder's are scaled from fewer."""
        files = encoded(IMAGES)
        decoded = self.decode(files)
        few = {name: column[:SEGMENTED] for name, column in decoded.items()}
        found = self.segment(few)
        masked = decoded | {
            "mask_counts": np.resize(found["mask_counts"], IMAGES),
            "region_box": np.resize(found["region_box"], (IMAGES, 4)),
        }
        features = self.embed(masked)
        remembered = self.cache_tokens(features)
        self.step(features, remembered)  # warm
        return {
            "decode": seconds(lambda: self.decode(files)),
            "segment": seconds(lambda: self.segment(few)) * IMAGES / SEGMENTED,
            "embed": seconds(lambda: self.embed(masked)),
            "remember": seconds(lambda: self.cache_tokens(features)),
            "step": float(np.median([seconds(lambda: self.step(features, remembered)) for _ in range(5)])),
        }

    def cache_tokens(self, features: Batch) -> list[CachedTokens]:
        return [self.model.cache_tokens(torch.from_numpy(features[name][:, 0])) for name in ("tokens", "region_tokens")]

    def step(self, features: Batch, remembered: list[CachedTokens]) -> None:
        image, text = self.model(remembered[0], torch.from_numpy(features["focus"][:, 0]), remembered[1])
        prompt_loss(self.model.logits(image, text), self.target, 0.5).backward()


def main() -> int:
    part = Epoch().measure()
    epochs = Config().train.epochs
    later = part["step"]
    stored = part["step"] + part["remember"] / epochs  # made once, in the first epoch
    images = part["decode"] + part["embed"] + part["remember"] + part["step"]
    everything = images + part["segment"]
    print(f"ViT-B/16 cut after block {CUT}, {IMAGES} images of {SIDE} pixels, {torch.get_num_threads()} threads\n")
    print("| an epoch | seconds | share of the one from images with masks | of the one from images alone |")
    print("|---|---|---|---|")
    for name, value in (
        ("from features, the first", part["remember"] + later),
        ("from features, every other", later),
        (f"from features, mean of {epochs}", stored),
        ("from images with stored masks", images),
        ("from images alone, with SAM2", everything),
    ):
        print(f"| {name} | {value:.2f} | {value / images:.3f} | {value / everything:.4f} |")
    met = stored <= OF_STORED_MASKS * images and stored <= OF_EVERYTHING * everything
    print(f"\nat most {OF_STORED_MASKS:.2f} and {OF_EVERYTHING:.2f}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
