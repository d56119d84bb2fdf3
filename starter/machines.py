"""Exposure: the picture that a radiography, CT or MRI machine takes of a drawn body, with the marks of its modality."""

import numpy as np

from medfocus.starter.canvas import blurred, coordinates, smooth_field

SITES = ("north", "south", "harbour", "valley", "hill")
"""The sites that phantoms come from."""
# Contrast, gamma and noise of the machines of each site.
_SITE_EXPOSURE = ((1.0, 1.0, 0.012), (0.85, 0.85, 0.02), (1.1, 1.15, 0.016), (0.9, 1.2, 0.028), (1.05, 0.8, 0.02))
# Levels of brightness before gamma.
_LEVELS = 1024


def expose(random: np.random.Generator, picture: np.ndarray, modality: str, site: int) -> np.ndarray:
    """Expose a picture as a machine of a site does.

    Args:
        random: source of all random draws.
        picture: float32 [S, S], 0 black to 1 white.
        modality: one of ``MODALITIES``.
        site: index into ``SITES``.

    Returns:
        Uint8 [S, S].
    """
    contrast, gamma, noise = _SITE_EXPOSURE[site]
    exposed = _MACHINES[modality](random, picture, np.float32(noise))
    exposed *= np.float32(contrast * random.uniform(0.75, 1.1) * (_LEVELS - 1))
    np.clip(exposed, 0, _LEVELS - 1, out=exposed)
    grey = np.linspace(0, 1, _LEVELS) ** (gamma * random.uniform(0.85, 1.15)) * 255
    return grey.astype(np.uint8)[exposed.astype(np.uint16)]


def _radiograph(random: np.random.Generator, picture: np.ndarray, noise: np.float32) -> np.ndarray:
    """Radiography, a projection: scattered rays, the anode's heel effect, quantum noise, and collimated borders."""
    x, y = coordinates(picture.shape[0])
    veil = np.float32(random.uniform(0.25, 0.4))
    exposed = (1 - veil) * picture + veil * (blurred(picture, 10) + np.float32(0.12))
    exposed *= 1 + np.float32(random.uniform(-0.3, 0.3)) * (x - 0.5) + np.float32(random.uniform(-0.3, 0.3)) * (y - 0.5)
    grain = random.standard_normal(picture.shape, dtype=np.float32)
    exposed += np.float32(1.3) * noise * grain * np.sqrt(exposed.clip(0.05))
    left, top, right, bottom = random.uniform(0.01, 0.06, 4) * (random.uniform(size=4) < 0.7)
    inside = (x[:1] > left) & (x[:1] < 1 - right) & (y[:, :1] > top) & (y[:, :1] < 1 - bottom)
    return exposed * inside


def _tomogram(random: np.random.Generator, picture: np.ndarray, noise: np.float32) -> np.ndarray:
    """CT: a round field that is black outside, correlated noise, and the table under the body."""
    size = picture.shape[0]
    x, y = coordinates(size)
    grain = random.standard_normal(picture.shape, dtype=np.float32)
    exposed = picture + np.float32(1.3) * noise * grain + noise * smooth_field(random, size, 48)
    sag = np.float32(random.uniform(0.87, 0.92)) - np.float32(random.uniform(0.1, 0.5)) * (x - np.float32(0.5)) ** 2
    for depth in (0, 0.035):
        exposed += np.clip(1 - np.abs(y - sag - np.float32(depth)) * 160, 0, 1) * np.float32(0.35)
    reach = np.float32(random.uniform(0.49, 0.53) ** 2)
    return exposed * ((x - np.float32(0.5)) ** 2 + (y - np.float32(0.5)) ** 2 < reach)


def _resonance(random: np.random.Generator, picture: np.ndarray, noise: np.float32) -> np.ndarray:
    """MRI: the bias field of a receive coil, a faint ghost half a field away, and Rician noise."""
    size = picture.shape[0]
    field = picture.clip(0) * np.exp(np.float32(0.15) * smooth_field(random, size, 3))
    field += np.float32(random.uniform(0.0, 0.05)) * np.roll(field, size // 2, 0)
    grain = noise * random.standard_normal((2, *picture.shape), dtype=np.float32)
    return np.sqrt((field + grain[0]) ** 2 + grain[1] ** 2)


_MACHINES = {"radiograph": _radiograph, "CT": _tomogram, "MRI": _resonance}
