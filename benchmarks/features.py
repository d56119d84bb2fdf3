"""Time that training from stored features saves, with full-size models.

Usage: ``python -m benchmarks.features``

Times an epoch of prompt tuning of ViT-B/16, cut after block 9, over the same images: from stored features, from images
whose masks are stored, and from images alone with SAM2.1-tiny. Weights are random, which does not change the time.
Prints a table of seconds and shares. The target for an epoch from features is at most 1/5 of one from images with
masks, and at most 1/20 of one from images alone. The last line says ``met`` or ``MISSED``; the exit code is 1 where it
is missed.
"""

import argparse
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
# Largest time of an epoch from features, relative to one from images with stored masks and to one from images alone.
MAX_OF_STORED_MASKS, MAX_OF_IMAGES = 1 / 5, 1 / 20


def jpeg_batch(count: int) -> Batch:
    """Phantoms as JPEG files, in a batch that ``Decode`` takes."""
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
    """Wall-clock time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Epoch:
    """The parts of an epoch over the same ``IMAGES`` images, each timed separately."""

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
        """Seconds of each part for ``IMAGES`` images; those of ``segment`` are extrapolated from ``SEGMENTED``."""
        files = jpeg_batch(IMAGES)
        decoded = self.decode(files)
        few = {name: column[:SEGMENTED] for name, column in decoded.items()}
        regions = self.segment(few)
        masked = decoded | {
            "mask_counts": np.resize(regions["mask_counts"], IMAGES),
            "region_box": np.resize(regions["region_box"], (IMAGES, 4)),
        }
        features = self.embed(masked)
        cached = self.cache_tokens(features)
        self.step(features, cached)  # warm
        return {
            "decode": seconds(lambda: self.decode(files)),
            "segment": seconds(lambda: self.segment(few)) * IMAGES / SEGMENTED,
            "embed": seconds(lambda: self.embed(masked)),
            "cache": seconds(lambda: self.cache_tokens(features)),
            "step": float(np.median([seconds(lambda: self.step(features, cached)) for _ in range(5)])),
        }

    def cache_tokens(self, features: Batch) -> list[CachedTokens]:
        """What the frozen blocks above the cut make of the tokens of the image and of the region."""
        return [self.model.cache_tokens(torch.from_numpy(features[name][:, 0])) for name in ("tokens", "region_tokens")]

    def step(self, features: Batch, cached: list[CachedTokens]) -> None:
        """Forward and backward pass of the prompts over the cached tokens."""
        image, text = self.model(cached[0], torch.from_numpy(features["focus"][:, 0]), cached[1])
        prompt_loss(self.model.logits(image, text), self.target, 0.5).backward()


def main() -> int:
    """Print the table; 1 where the target is missed."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    part = Epoch().measure()
    epochs = Config().train.epochs
    features = part["step"] + part["cache"] / epochs  # tokens are cached once, in the first epoch
    masks = part["decode"] + part["embed"] + part["cache"] + part["step"]
    images = masks + part["segment"]
    print(f"ViT-B/16 cut after block {CUT}, {IMAGES} images of {SIDE} pixels, {torch.get_num_threads()} threads\n")
    print("| an epoch | seconds | share of the one from images with masks | of the one from images alone |")
    print("|---|---|---|---|")
    for name, value in (
        ("from features, the first", part["cache"] + part["step"]),
        ("from features, every other", part["step"]),
        (f"from features, mean of {epochs}", features),
        ("from images with stored masks", masks),
        ("from images alone, with SAM2", images),
    ):
        print(f"| {name} | {value:.2f} | {value / masks:.3f} | {value / images:.4f} |")
    met = features <= MAX_OF_STORED_MASKS * masks and features <= MAX_OF_IMAGES * images
    print(f"\nat most {MAX_OF_STORED_MASKS:.2f} and {MAX_OF_IMAGES:.2f}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
