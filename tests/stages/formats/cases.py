"""A file for the decode stage, the pictures that may be shown of it, and the scene that all of them hold."""

from dataclasses import dataclass

import numpy as np

from medfocus.stages.decode import Decode, media_type_of
from tests.stages.formats import viewer

GREY, COLOUR = viewer.scene()[..., 2:], viewer.scene()
SHARE = viewer.opacity()
VALUE, WINDOW = "by value", "windowed"
Pictures = tuple[np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class Case:
    """One file, what it is called in the table of docs/formats.md, and what is to come of it.

    Args:
        container, colour, samples: columns of the table.
        content: the file.
        shown: uint8 [SIDE, SIDE, C], where samples are shown by their value, and where they are windowed; each or both
            None where there is no such picture.
        wanted: ``VALUE``, ``WINDOW`` or the error that quarantine records.
        tolerance: mean grey levels by which the picture may differ; above 0.5 (rounding) where compression loses some.
    """

    container: str
    colour: str
    samples: str
    content: bytes
    shown: Pictures
    wanted: str
    tolerance: float = 0.5

    def outcome(self) -> str:
        """What the decode stage makes of it: ``VALUE``, ``WINDOW``, an error with its message, or the differences."""
        out = decoded(self.content)
        if out["error"][0]:
            return f"{out['error'][0]}: {out['message'][0]}"
        off = {
            how: float(np.abs(out["pixels"][0].astype(int) - picture.astype(int)).mean())
            for how, picture in zip((VALUE, WINDOW), self.shown, strict=True)
            if picture is not None
        }
        best = min(off, key=lambda how: off[how], default="")
        return best if best and off[best] <= self.tolerance else f"wrong by {off}"


def decoded(content: bytes, side: int = viewer.SIDE, max_pixels: int = 1_000_000) -> dict[str, np.ndarray]:
    """What the decode stage makes of a batch of one file."""
    batch = {
        "image_id": np.array(["x"], object),
        "image": np.array([content, None], object)[:1],
        "media_type": np.array([media_type_of(content) or "image/unknown"], object),
    }
    return Decode(size=side, max_pixels=max_pixels)(batch)


def shallow(picture: np.ndarray, bits: int) -> np.ndarray:
    """The scene in all values of some bits, unsigned."""
    return np.round(picture * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)


def deep(picture: np.ndarray, kind: str) -> np.ndarray:
    """The scene in a part of the range of a type, as a scanner gives it: shown by value it would be dark or flat."""
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return (picture * 0.7 - 0.2).astype(dtype)
    low, span = {
        "u2": (500, 3500),
        "u4": (2**31, 2**30),
        "i1": (-100, 150),
        "i2": (-1000, 3000),
        "i4": (-(2**30), 2**30),
    }[kind]
    return np.round(picture * span + low).astype(dtype)


def pictures(samples: np.ndarray, full: float | None, share: np.ndarray | None = None) -> Pictures:
    """Both pictures of samples [H, W, C], on black; of floating-point and signed ones there is none by value."""
    value = None if full is None else viewer.on_black(viewer.by_value(samples, full), share)
    window = viewer.by_window(samples, None if share is None else share > 0)
    return value, viewer.on_black(window, share)
