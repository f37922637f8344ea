"""What the samples of a graph tell of the cluster of a new one: the Nyström extension of its eigenvectors."""

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from conr.clustering.compactness import sums_of_clusters
from conr.neighbors.graph import reciprocal_encoding

MOST = 100  # clusters up to which there are ballots: they take two numbers for each cluster and sample


def ballots_of(
    features: NDArray[np.float32],
    ranking: NDArray[np.int64],
    k2: int,
    nodes: sparse.csr_matrix,
    scaled: NDArray[np.float64],
    rows: NDArray[np.float32],
    clusters: NDArray[np.int64],
) -> NDArray[np.float32]:
    """The ballots of all samples: from those of its neighbors follows where a new sample would be in the graph.

    A new sample x with node h_x would have the row λ⁻¹ d_x^-½ h_xᵀ Hᵀ D^-½ V in the eigenvectors V of the affinity
    D^-½ H Hᵀ D^-½ (Nyström's extension; Bengio et al., NIPS 2003). Its length does not count: x is in the cluster c
    whose mean direction m_c it is nearest to. So a ballot is a row of B = Hᵀ D^-½ V M, and x is in the cluster of the
    largest entry of h_xᵀ B. Its node is r_x + Σ_j r_j, the reciprocal encodings of x and of the samples that it is
    linked with, both among the k2 nearest of the other; so Σ_j r_jᵀ B = Σ_j (R B)_j.

    Args:
        features: (N, D) unit vectors.
        ranking: (N, k1) nearest neighbors, the sample itself first.
        k2: neighbors that may be linked, the sample itself included.
        nodes: (N, N) H, unit rows, in the order of the samples.
        scaled: (N, E) D^-½ V.
        rows: (N, E) rows of V of unit length.
        clusters: (N,) from 0 to F − 1, all present.

    Returns:
        (N, 2 F + 2): the ballot, row of B; that of the encoding, row of R B; the similarity to the k1-th and to the
        k2-th neighbor.
    """
    directions = normalize(sums_of_clusters(rows, clusters))
    count = len(directions)
    table = np.empty((len(features), 2 * count + 2), np.float32)
    ballots = nodes.T @ (scaled @ directions.T)
    ballots /= max(ballots.max(), -ballots.min())
    table[:, :count] = ballots
    table[:, count:-2] = reciprocal_encoding(ranking) @ ballots
    for column, rank in ((-2, ranking.shape[1]), (-1, k2)):
        table[:, column] = np.einsum("nd,nd->n", features, features[ranking[:, rank - 1]])
    return table
