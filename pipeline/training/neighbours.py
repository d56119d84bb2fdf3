"""Finds images that may be of one patient, by the tokens that ``embed`` stored.

Slices of one patient look similar. Where the patient of an image is not known, ``folds`` treats images as of one
patient if they are more similar than images of different patients usually are.

The similarity of two images is a cosine. All patch tokens of an image are reduced by a sparse random projection
(scikit-learn's, after Li, Hastie and Church 2006), then to principal components of equal variance. The scaling removes
what most images of an archive have in common, such as the outline of a head. ``docs/held-out.md`` compares this measure
with hashes of pixels and with other tokens.
"""

import hashlib
from collections.abc import Container, Mapping, Sequence
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

# Dimensions after the random projection of an image's tokens, and principal components that are compared.
_PROJECTED, _COMPONENTS = 512, 64
# With fewer different images, the usual similarity of two patients cannot be estimated.
_FEWEST = 16
# Most near-duplicates of one image; a group can be larger, since near-duplicates have near-duplicates of their own.
_NEAREST = 10
# Ranks of neighbours that are assumed to be of other patients, and the fewest images for which the assumption serves.
_NEAR_RANK, _FAR_RANK, _FEWEST_FOR_RANKS = 10, 40, 80
# Share of images that may be mistaken for near-duplicates of another patient's, and images that estimate it.
_FALSE_SHARE, _SAMPLE = 0.05, 2000
# Files that are read at the same time, and rows of each file in memory.
_READERS, _ROWS = 4, 64


@dataclass(frozen=True)
class Sketches:
    """Short descriptions of N images, which are compared in place of the tokens.

    Args:
        image_ids: ``image_id`` of each image.
        values: float32 [N, P], the projected patch tokens.
        digests: digest of the tokens of each image; identical images have equal digests.
    """

    image_ids: Sequence[str]
    values: np.ndarray
    digests: Sequence[str]


class Pair(NamedTuple):
    """Two images that may be of one patient.

    Args:
        first: ``image_id`` of one image.
        second: ``image_id`` of the other.
        identical: whether their tokens are equal.
    """

    first: str
    second: str
    identical: bool


@dataclass(frozen=True)
class Neighbours:
    """Images that may be of one patient.

    Args:
        pairs: pairs of identical images, then the others, the most similar first.
        compared: whether there were enough images to recognise near-duplicates; if not, all pairs are identical images.
    """

    pairs: Sequence[Pair] = ()
    compared: bool = False


def read_sketches(rows: Location, images: Container[str]) -> Sketches:
    """Read the sketches of feature rows; the tokens are read once and not kept.

    Args:
        rows: folder with at least one feature file.
        images: ``image_id`` of the rows to read; those of the split ``test`` are not among them.

    Raises:
        UsageError: a file holds no feature rows.
        StorageError: a file cannot be read.
    """
    names = rows.files(".parquet")
    tokens, width = _tokens_shape(rows / names[0])
    projection = SparseRandomProjection(_PROJECTED, random_state=0).fit(np.zeros((1, (tokens - 1) * width), np.float32))
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(lambda name: _read_file(rows / name, images, projection), names))
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
    return pads.ParquetFileFormat().make_fragment(file.path, file.arrow_filesystem)


def _read_file(file: Location, wanted: Container[str], projection: SparseRandomProjection) -> Sketches:
    images: list[str] = []
    digests: list[str] = []
    values = [np.zeros((0, _PROJECTED), np.float32)]

    def read() -> None:
        for batch in _fragment(file).to_batches(columns=["image_id", "tokens"], batch_size=_ROWS):
            names = batch["image_id"].to_pylist()
            rows = [row for row, name in enumerate(names) if name in wanted]
            if not rows:  # as in the file of a shard whose labelled images are all in quarantine
                continue
            tokens = batch["tokens"].to_numpy_ndarray()[rows]
            images.extend(names[row] for row in rows)
            digests.extend(hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in tokens)
            patches = tokens[:, 1:].reshape(len(tokens), -1).astype(np.float32)
            values.append(projection.transform(patches).astype(np.float32))

    file.attempt(read)
    return Sketches(images, np.concatenate(values), digests)


def find_neighbours(sketches: Sketches, labels: Mapping[str, str]) -> Neighbours:
    """Find pairs of images that may be of one patient.

    Two images are near-duplicates if their cosine is above a threshold, which is estimated from the archive: only one
    in twenty images should exceed it with an image of another patient. The threshold is the lower of two estimates:

    * from the cosine of each image and the nearest image of another class, since most patients have one class;
    * from the cosines of each image's 10th and 40th neighbours, which are assumed to be of other patients. Such cosines
      fall with the logarithm of the rank, which gives the cosine of the nearest image of another patient. This estimate
      serves where patients have images of several classes.

    The order of the rows does not matter. Memory is that of ``values`` and of about 50 numbers an image.

    Args:
        sketches: sketches of all images.
        labels: class of each image by its ``image_id``.

    Returns:
        The pairs; n copies of an image give n - 1 identical pairs.
    """
    order = np.argsort(np.array(sketches.image_ids, dtype=object), kind="stable")
    images = [sketches.image_ids[row] for row in order]
    _, first, content = np.unique([sketches.digests[row] for row in order], return_index=True, return_inverse=True)
    pairs = [
        Pair(images[first[content[row]]], images[row], True) for row in range(len(images)) if first[content[row]] != row
    ]
    different = np.sort(first)  # one row of each set of identical images
    if len(different) < _FEWEST:
        return Neighbours(pairs)
    directions = _directions(sketches.values[order[different]])
    cosines, neighbours = _nearest(directions, min(_FAR_RANK, len(different) - 1))
    classes = np.unique([labels[images[row]] for row in different], return_inverse=True)[1]
    threshold = min(_between_classes(directions, classes), _beyond_ranks(cosines))
    row, place = np.nonzero(cosines[:, :_NEAREST] > threshold)
    near = np.sort(np.stack([row, neighbours[row, place]], axis=1), axis=1)
    near, unique = np.unique(near, axis=0, return_index=True)
    similarity = cosines[row, place][unique]
    for one, other in different[near[np.argsort(-similarity, kind="stable")]]:
        pairs.append(Pair(images[one], images[other], False))
    return Neighbours(pairs, compared=True)


def _directions(values: np.ndarray) -> np.ndarray:
    """Unit vectors float32 [N, k] whose cosines are the similarities of images; zero for the mean image."""
    pca = PCA(min(_COMPONENTS, len(values) // 3), svd_solver="covariance_eigh").fit(values)
    component = pca.explained_variance_ > 1e-6 * max(pca.explained_variance_[0], 1e-12)
    scores = pca.transform(values)[:, component] / np.sqrt(pca.explained_variance_[component])
    lengths = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0).astype(np.float32)


def _cosines(distances: np.ndarray) -> np.ndarray:
    """Cosines of unit vectors at the given Euclidean distances."""
    return 1 - distances**2 / 2


def _nearest(directions: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and positions of each row's nearest other rows, the nearest first: [N, count] each."""
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(directions)
    distances, rows = search.kneighbors()  # without an argument, a row is not its own neighbour
    return _cosines(distances), rows


def _between_classes(directions: np.ndarray, classes: np.ndarray) -> float:
    """The cosine that one in twenty images exceeds with an image of another class; 1 if there is one class.

    Rows of a class that holds more than half of all rows are left out: few rows are of another class.
    """
    sizes = np.bincount(classes)
    sample = np.flatnonzero(sizes[classes] <= len(classes) / 2)
    if not len(sample):
        return 1.0
    if len(sample) > _SAMPLE:
        sample = np.sort(np.random.default_rng(0).choice(sample, _SAMPLE, replace=False))
    nearest = []
    for one in np.unique(classes[sample]):
        search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(directions[classes != one])
        nearest.append(_cosines(search.kneighbors(directions[sample[classes[sample] == one]])[0][:, 0]))
    return float(np.quantile(np.concatenate(nearest), 1 - _FALSE_SHARE))


def _beyond_ranks(cosines: np.ndarray) -> float:
    """The cosine with its nearest image that one in twenty images would exceed if no neighbour were of its patient."""
    if len(cosines) < _FEWEST_FOR_RANKS:
        return 1.0
    near, far = cosines[:, _NEAR_RANK - 1], cosines[:, _FAR_RANK - 1]
    nearest = far + (near - far) * np.log(_FAR_RANK) / np.log(_FAR_RANK / _NEAR_RANK)
    return float(np.quantile(nearest, 1 - _FALSE_SHARE))
