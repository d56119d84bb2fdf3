"""What a viewer shows, computed from first principles and from nothing of the product's: the reference for tests."""

import numpy as np

SIDE = 64


def scene() -> np.ndarray:
    """A picture in 0..1, float [SIDE, SIDE, 3], of all of the range, that no turn or mirror maps onto itself."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    red = 0.8 * x + 0.2 * (np.hypot(x - 0.25, y - 0.2) < 0.12)
    green = 0.6 * y + 0.4 * (np.abs(x - 0.7) < 0.06) * (y < 0.5)
    blue = 0.5 + 0.5 * np.sin(9 * x + 4 * y * y)
    return np.clip(np.stack([red, green, blue], axis=2), 0, 1)


def opacity() -> np.ndarray:
    """Opacity in 0..1, [SIDE, SIDE]: an erased corner, a soft edge, and the rest opaque."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    return np.clip((x + y - 30) / 20, 0, 1)


def by_value(samples: np.ndarray, full: float) -> np.ndarray:
    """Samples in 0..1 where zero is black and ``full`` is white."""
    return samples.astype(np.float64) / full


def by_window(samples: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
    """Samples [H, W, C] in 0..1 of one window for all channels, over the finite samples of pixels that are shown."""
    values = samples.astype(np.float64)
    used = values[shown] if shown is not None else values
    low, high = np.percentile(used[np.isfinite(used)], (0.5, 99.5))
    return np.where(np.isnan(values), 0, np.clip((values - low) / (high - low), 0, 1))


def on_black(picture: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    """The picture as uint8, laid on black by an opacity in 0..1."""
    laid = picture if share is None else picture * share[:, :, None]
    return np.round(laid * 255).astype(np.uint8)


def upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels moved as EXIF says for tag 274: where row 0 and column 0 of what is stored are in the picture."""
    height, width = picture.shape[:2]
    turned = orientation in (5, 6, 7, 8)
    out = np.zeros((width, height, *picture.shape[2:]) if turned else picture.shape, picture.dtype)
    for y in range(height):
        for x in range(width):
            row = {1: y, 2: y, 3: height - 1 - y, 4: height - 1 - y, 5: x, 6: x, 7: width - 1 - x, 8: width - 1 - x}
            column = {1: x, 2: width - 1 - x, 3: width - 1 - x, 4: x, 5: y, 6: height - 1 - y, 7: height - 1 - y, 8: y}
            out[row[orientation], column[orientation]] = picture[y, x]
    return out


def rgb_of_lab(lab: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 of CIE L*a*b* with the white of D50, after CIE 15 and IEC 61966-2-1 (Bradford to D65)."""
    f = (lab[..., 0] + 16) / 116
    f = np.stack([f + lab[..., 1] / 500, f, f - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([0.9642, 1.0, 0.8249])
    matrix = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    linear = np.clip(xyz @ matrix.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
