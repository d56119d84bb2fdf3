"""Images that may be of one patient, found by the tokens that ``embed`` stored.

Slices of one patient look alike. Where no patient is known, images that are more alike than images of different
patients are taken as of one patient when the rows are split into folds.

An image is compared by the layout of its patch tokens: a sparse random projection of all of them (scikit-learn's, after
Li, Hastie and Church 2006), then the principal components scaled to equal variance, then the cosine. The scaling takes
away what most images of an archive have in common, such as the outline of a head. ``docs/held-out.md`` compares this
with hashes of pixels and with other tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.dataset as pads
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.random_projection import SparseRandomProjection

from medfocus.pipeline.data import records
from medfocus.pipeline.data.storage import Location

# Numbers that are kept of the tokens of an image, and principal components of these that are compared.
_PROJECTED, _COMPONENTS = 512, 64
# Fewer different images than this do not tell how alike two patients are.
_FEWEST = 16
# Most near-duplicates that an image brings in; a group can be larger, since near-duplicates have their own.
_NEAREST = 10
# Ranks of neighbours that are taken as of other patients, and the fewest images for which these ranks are a tail.
_NEAR_RANK, _FAR_RANK, _FEWEST_FOR_RANKS = 10, 40, 80
# Share of images that may be taken as near-duplicates of another patient's, and how many images measure it.
_FALSE_SHARE, _SAMPLE = 0.05, 2000
# Files read at once, and rows of a file in memory at once.
_READERS, _ROWS = 4, 64


@dataclass(frozen=True)
class Sketches:
    """What is compared of N images.

    Args:
        image_ids: N names.
        values: float32 [N, P], the projected patch tokens.
        digests: N digests of the tokens; two that are equal are of one picture.
    """

    image_ids: Sequence[str]
    values: np.ndarray
    digests: Sequence[str]


class Pair(NamedTuple):
    """Two images that may be of one patient; ``identical`` if they are the same picture."""

    first: str
    second: str
    identical: bool


@dataclass(frozen=True)
class Neighbours:
    """Images that may be of one patient.

    Args:
        pairs: identical pictures first, then the most alike first.
        compared: whether there were enough images to tell what a near-duplicate is; if not, only identical ones count.
    """

    pairs: Sequence[Pair] = ()
    compared: bool = False


def read_sketches(rows: Location) -> Sketches:
    """Sketches of all feature rows below a place; the tokens are read once and not kept.

    Args:
        rows: folder of feature files, one at least.

    Raises:
        UsageError: a file holds no feature rows.
        StorageError: a file cannot be read.
    """
    names = rows.files(".parquet")
    tokens, width = _tokens_shape(rows / names[0])
    projection = SparseRandomProjection(_PROJECTED, random_state=0).fit(np.zeros((1, (tokens - 1) * width), np.float32))
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(lambda name: _read_file(rows / name, projection), names))
    return Sketches(
        [image for part in parts for image in part.image_ids],
        np.concatenate([part.values for part in parts]),
        [digest for part in parts for digest in part.digests],
    )


def _tokens_shape(file: Location) -> tuple[int, int]:
    schema = file.attempt(lambda: _fragment(file).physical_schema)
    tokens, width = schema.field("tokens").type.shape if "tokens" in schema.names else (1, 1)
    records.check_record(schema, records.feature_schema(tokens, width, region=False), file.uri)
    return tokens, width


def _fragment(file: Location) -> pads.Fragment:
    return pads.ParquetFileFormat().make_fragment(file.path, file.filesystem)


def _read_file(file: Location, projection: SparseRandomProjection) -> Sketches:
    images: list[str] = []
    digests: list[str] = []
    values = [np.zeros((0, _PROJECTED), np.float32)]

    def read() -> None:
        for batch in _fragment(file).to_batches(columns=["image_id", "tokens"], batch_size=_ROWS):
            tokens = batch["tokens"].to_numpy_ndarray()
            images.extend(batch["image_id"].to_pylist())
            digests.extend(hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in tokens)
            patches = tokens[:, 1:].reshape(len(tokens), -1).astype(np.float32)
            values.append(projection.transform(patches).astype(np.float32))

    file.attempt(read)
    return Sketches(images, np.concatenate(values), digests)


def find_neighbours(sketches: Sketches, labels: Mapping[str, str]) -> Neighbours:
    """Pairs of images that may be of one patient.

    Two images are near-duplicates if their cosine is above a threshold that follows the archive. It is the lower of two
    estimates of the cosine that only one in twenty images exceeds with an image of another patient:

    * the cosine of an image and the nearest image of another class, since most patients have one class;
    * the cosine that an image's 10th and 40th neighbours let expect of its nearest, if all were of other patients: the
      cosines of the nearest of many fall with the logarithm of their rank. This one serves where patients have images
      of several classes.

    The order of the rows does not matter. Memory is that of ``values`` and of some 50 numbers an image.

    Args:
        sketches: of all images.
        labels: class of each image by its ``image_id``.

    Returns:
        The pairs; a picture that is there n times gives n - 1 identical ones.
    """
    order = np.argsort(np.array(sketches.image_ids, dtype=object), kind="stable")
    images = [sketches.image_ids[row] for row in order]
    _, first, which = np.unique([sketches.digests[row] for row in order], return_index=True, return_inverse=True)
    pairs = [
        Pair(images[first[which[row]]], images[row], True) for row in range(len(images)) if first[which[row]] != row
    ]
    different = np.sort(first)  # one row of each picture
    if len(different) < _FEWEST:
        return Neighbours(pairs)
    directions = _directions(sketches.values[order[different]])
    cosines, neighbours = _nearest(directions, min(_FAR_RANK, len(different) - 1))
    classes = np.unique([labels[images[row]] for row in different], return_inverse=True)[1]
    threshold = min(_between_classes(directions, classes), _beyond_ranks(cosines))
    row, place = np.nonzero(cosines[:, :_NEAREST] > threshold)
    near = np.sort(np.stack([row, neighbours[row, place]], axis=1), axis=1)
    near, once = np.unique(near, axis=0, return_index=True)
    alike = cosines[row, place][once]
    for one, other in different[near[np.argsort(-alike, kind="stable")]]:
        pairs.append(Pair(images[one], images[other], False))
    return Neighbours(pairs, compared=True)


def _directions(values: np.ndarray) -> np.ndarray:
    """Unit vectors float32 [N, k] whose cosines tell how alike the images are; zero for one that is the mean image."""
    pca = PCA(min(_COMPONENTS, len(values) // 3), svd_solver="covariance_eigh").fit(values)
    kept = pca.explained_variance_ > 1e-6 * max(pca.explained_variance_[0], 1e-12)
    scores = pca.transform(values)[:, kept] / np.sqrt(pca.explained_variance_[kept])
    lengths = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0).astype(np.float32)


def _cosines(distances: np.ndarray) -> np.ndarray:
    """Of unit vectors so far apart."""
    return 1 - distances**2 / 2


def _nearest(directions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and row of the nearest other rows of each row, the nearest first: [N, count] each."""
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(directions)
    distances, rows = search.kneighbors()  # without an argument, no row is its own neighbour
    return _cosines(distances), rows


def _between_classes(directions: np.ndarray, classes: np.ndarray) -> float:
    """The cosine that one in twenty images exceeds with an image of another class; 1 if there is one class.

    Rows of a class that holds more than half of all are left out: they have few others to be near to.
    """
    sizes = np.bincount(classes)
    asked = np.flatnonzero(sizes[classes] <= len(classes) / 2)
    if not len(asked):
        return 1.0
    if len(asked) > _SAMPLE:
        asked = np.sort(np.random.default_rng(0).choice(asked, _SAMPLE, replace=False))
    nearest = []
    for one in np.unique(classes[asked]):
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(directions[classes != one])
        nearest.append(_cosines(search.kneighbors(directions[asked[classes[asked] == one]])[0][:, 0]))
    return float(np.quantile(np.concatenate(nearest), 1 - _FALSE_SHARE))


def _beyond_ranks(cosines: np.ndarray) -> float:
    """The cosine of the nearest that one in twenty images would exceed if no neighbour were of its patient."""
    if len(cosines) < _FEWEST_FOR_RANKS:
        return 1.0
    near, far = cosines[:, _NEAR_RANK - 1], cosines[:, _FAR_RANK - 1]
    nearest = far + (near - far) * np.log(_FAR_RANK) / np.log(_FAR_RANK / _NEAR_RANK)
    return float(np.quantile(nearest, 1 - _FALSE_SHARE))
