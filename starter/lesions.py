"""The lesions of the phantoms: four kinds that differ in outline, texture and margin."""

from collections.abc import Callable

import numpy as np
from scipy.spatial import ConvexHull

from medfocus.starter.canvas import smooth_field

CLASSES = ("solid mass", "ring lesion", "spiculated mass", "calcification cluster")
"""The kinds of lesion, which are the classes of the phantoms."""


def draw_lesion(
    random: np.random.Generator, picture: np.ndarray, kind: str, centre: tuple[float, float], area: float
) -> np.ndarray:
    """Paint one lesion into a picture.

    Args:
        random: source of all random draws.
        picture: float32 [S, S], 0 black to 1 white; changed in place.
        kind: one of ``CLASSES``.
        centre: x and y, 0..1.
        area: approximate share of the image that the outline covers.

    Returns:
        The mask of the lesion, bool [S, S].
    """
    size = picture.shape[0]
    radius = float(np.sqrt(area / np.pi))
    reach = int(np.ceil(radius * 2.1 * size)) + 2
    column, row = int(centre[0] * size), int(centre[1] * size)
    top, left = max(0, row - reach), max(0, column - reach)
    window = (slice(top, min(size, row + reach + 1)), slice(left, min(size, column + reach + 1)))
    y = ((np.arange(window[0].start, window[0].stop, dtype=np.float32) + 0.5) / size - centre[1])[:, None] / radius
    x = ((np.arange(window[1].start, window[1].stop, dtype=np.float32) + 0.5) / size - centre[0])[None, :] / radius
    squeeze, angle = random.uniform(0.8, 1.2), random.uniform(0, np.pi)
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    patch = picture[window]
    margin = random.uniform(0.6, 1.8)
    inside = _KINDS[kind](random, patch, x * np.float32(squeeze), y / np.float32(squeeze), margin)
    mask = np.zeros(picture.shape, bool)
    mask[window] = inside
    return mask


def _edge(distance: np.ndarray, width: float) -> np.ndarray:
    """A soft edge: 1 where the distance is below 1, 0 where it is above, over a margin of ``width`` radii."""
    return np.clip((1 - distance) / width + 0.5, 0, 1)


def _grain(random: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """A smooth random field of a shape that need not be square."""
    return smooth_field(random, max(shape), cells)[: shape[0], : shape[1]]


def _solid(random: np.random.Generator, patch: np.ndarray, x: np.ndarray, y: np.ndarray, margin: float) -> np.ndarray:
    """Paint a solid mass: even and bright, with a smooth outline."""
    distance = np.sqrt(x * x + y * y)
    patch += _edge(distance, 0.15 * margin) * np.float32(random.uniform(0.22, 0.34))
    return distance < 1


def _ring(random: np.random.Generator, patch: np.ndarray, x: np.ndarray, y: np.ndarray, margin: float) -> np.ndarray:
    """Paint a ring lesion: a bright rim around a dark core."""
    distance = np.sqrt(x * x + y * y)
    rim = random.uniform(0.25, 0.4)
    outer, inner = _edge(distance, 0.12 * margin), _edge(distance / (1 - rim), 0.2 * margin)
    patch += (outer - inner) * np.float32(random.uniform(0.28, 0.40))
    patch -= inner * np.float32(random.uniform(0.06, 0.16))
    return distance < 1


def _spiculated(
    random: np.random.Generator, patch: np.ndarray, x: np.ndarray, y: np.ndarray, margin: float
) -> np.ndarray:
    """Paint a spiculated mass: a star of spikes around an uneven core."""
    angle = np.arctan2(y, x)
    spikes, phase = int(random.integers(6, 11)), random.uniform(0, 2 * np.pi)
    ray = np.cos(0.5 * spikes * angle + phase) ** 2
    outline = 0.62 + 0.84 * ray * (0.75 + 0.25 * np.cos(angle * 2 + phase))
    distance = np.sqrt(x * x + y * y) / outline
    texture = 1 + 0.25 * _grain(random, distance.shape, 9)
    patch += _edge(distance, 0.3 * margin) * texture * np.float32(random.uniform(0.20, 0.32))
    return distance < 1


def _cluster(random: np.random.Generator, patch: np.ndarray, x: np.ndarray, y: np.ndarray, margin: float) -> np.ndarray:
    """Paint a calcification cluster: small, very bright grains. The mask is their convex hull, as a person draws it."""
    grains = int(random.integers(9, 16))
    turn = random.uniform(0, 2 * np.pi, grains)
    away = np.sqrt(random.uniform(0, 1, grains)) * 0.85
    centres = np.stack([away * np.cos(turn), away * np.sin(turn)], 1).astype(np.float32)
    radii = random.uniform(0.12, 0.2, grains).astype(np.float32)
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf, np.float32)
    for centre, radius in zip(centres, radii, strict=True):
        dx, dy = x - centre[0], y - centre[1]
        nearest = np.minimum(nearest, np.sqrt(dx * dx + dy * dy) / radius)
    patch += _edge(nearest, 0.5 * margin) * np.float32(random.uniform(0.35, 0.5))
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    rims = centres[:, None] + radii[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    inside = np.ones(nearest.shape, bool)
    for across, down, offset in ConvexHull(rims.reshape(-1, 2)).equations.astype(np.float32):
        inside &= across * x + down * y + offset < 0
    return inside | (nearest < 1)


# What paints each kind into a patch of the picture, in coordinates where the outline has radius 1, and gives the mask.
_KINDS: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]] = dict(
    zip(CLASSES, (_solid, _ring, _spiculated, _cluster), strict=True)
)
