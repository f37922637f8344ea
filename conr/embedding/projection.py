"""From the raw features of a frozen network to unit vectors: center, unit length, PCA, unit length.

No whitening: it lowers how often neighbors are of one kind.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.embedding.nodes import TINY
from conr.errors import UserError
from conr.files import ArrayWriter, atomic_file

ROWS = 4096  # features that are read at a time
EQUAL = 1e-6  # share of the features' mean length below which deviations from the mean are rounding errors
FEWEST = 2  # components
RANK = 1e-6  # share of the largest eigenvalue below which one is a rounding error of float32 products


@dataclass(frozen=True)
class Projection:
    """A map of features f to unit vectors: u = (f − mean) / ‖f − mean‖, then Pᵀu / ‖Pᵀu‖.

    Attributes:
        mean: (F,) float32.
        components: P, (F, D) float32 with orthonormal columns.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, D) float32 unit vectors of (B, F) features; zeros for a feature vector that is the mean."""
        return unit(unit(features - self.mean) @ self.components)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; rows of length 0 stay 0."""
    lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(TINY))
    return scaled


def fit_projection(features: NDArray[np.float32], dimension: int, training: slice = slice(None)) -> Projection:
    """Fit center and principal components.

    The components are the leading eigenvectors of Σ u uᵀ for the centered unit vectors u: of all projections to as many
    dimensions the one that keeps most of the cosines between images. A component's largest entry is positive.

    Args:
        features: (N, F) float32, memory-mapped or not; read in blocks.
        dimension: the most components; there are fewer of fewer features or images, or of features of lower rank, but
            two if there are two features: what is drawn needs a plane.
        training: the rows that may be fitted to.

    Raises:
        UserError: features are not finite.
    """
    rows = features[training]
    if len(rows) == 0:
        raise ValueError("there must be at least one row to fit to")
    total, width = np.zeros(rows.shape[1]), 0.0
    for block in _blocks(rows):
        total += block.sum(axis=0, dtype=np.float64)
        width = max(width, float(np.abs(block).max()))
    if not np.isfinite(width) or not np.isfinite(total).all():
        raise UserError("the features of the backbone are not finite numbers; use another backbone or other images")
    mean = (total / len(rows)).astype(np.float32)
    spread = max(float(np.abs(block - mean).max()) for block in _blocks(rows))
    if spread <= EQUAL * width:  # all images are equal: their direction is what there is
        mean = np.zeros_like(mean)
    moments = np.zeros((rows.shape[1], rows.shape[1]))
    for block in _blocks(rows):
        directions = unit(block - mean)
        moments += directions.T @ directions
    values, vectors = np.linalg.eigh(moments)
    kept = min(int((values > RANK * values[-1]).sum()), len(rows) - 1)
    components = vectors[:, ::-1][:, : min(dimension, max(kept, FEWEST))]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.where(components[largest, np.arange(components.shape[1])] < 0, -1.0, 1.0)
    return Projection(mean, np.ascontiguousarray(components, dtype=np.float32))


def write_projected(features: NDArray[np.float32], projection: Projection, path: Path) -> None:
    """Write the (N, D) float32 unit vectors of (N, F) features to an .npy file; memory does not grow with N."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        writer = ArrayWriter(file, (projection.components.shape[1],), np.float32)
        for block in _blocks(features):
            writer.append(projection.apply(block))
        writer.close()


def _blocks(features: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (features[first : first + ROWS] for first in range(0, len(features), ROWS))
