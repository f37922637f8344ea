"""Embeddings in a plane for people to look at, and the nearest neighbors of each image."""

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

MAP_POINTS = 2_500  # samples that t-SNE arranges; it takes 6 s for them on one core, and a minute for 20,000
NEARLY_EQUAL = 1e-3  # distance up to which unit vectors count as equal
ANCHORS = 3  # arranged samples that place another one (docs/lab/page.md)
SHARPNESS = 20.0  # of an anchor's weight: exp(SHARPNESS · cosine)
FAR = 4.0  # an anchor further from the nearest one than so many spacings of the plane lies in another group
SPREAD = 0.5  # of a placed sample around the mean of its anchors, in spacings of the plane
ROWS = 1024  # samples that are compared with all others at a time


def embedding_map(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32] | None:
    """A plane in which neighbors stay neighbors: t-SNE of at most 2,500 samples, and the others between those.

    A sample that t-SNE does not see lies at the weighted mean of the arranged ones that are nearest to it by cosine,
    moved a little in a direction that its embedding decides, so that many samples between the same ones do not cover
    each other. Samples that are (nearly) equal are one point: t-SNE would arrange them in a ring, and where there is
    nothing else divides by their standard deviation of 0, which ends the process.

    Args:
        embeddings: (N, D) float32 unit vectors.
        seed: seed of the samples and of t-SNE.

    Returns:
        (N, 2) float32 positions; None if the samples are all (nearly) equal or one is not finite.
    """
    if not np.isfinite(embeddings).all():
        return None
    different, copies = _different(embeddings)
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(different))[:MAP_POINTS])
    arranged, groups = _arranged(different[chosen], seed)
    if arranged is None:
        return None
    if len(chosen) == len(different):
        return arranged[groups][copies]
    anchors = different[chosen[np.unique(groups, return_index=True)[1]]]
    return _placed(different, anchors, arranged, generator)[copies]


def nearest_images(
    embeddings: NDArray[np.float32], count: int, *, neighbors: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The nearest other samples of each sample by cosine, the nearest first.

    Args:
        embeddings: (N, D) float32 unit vectors.
        count: how many; fewer where there are not so many other samples.
        neighbors: (N, ≥ count + 1) int64 nearest samples, nearest first, if they are known already; a sample may be
            among its own, anywhere or not at all.

    Returns:
        (N, min(count, N − 1)) int64.

    Raises:
        ValueError: neighbors has another number of rows, or too few columns.
    """
    total, count = len(embeddings), min(count, len(embeddings) - 1)
    if neighbors is None:
        vectors = torch.from_numpy(np.ascontiguousarray(embeddings, np.float32))
        parts = [vectors[first : first + ROWS] for first in range(0, total, ROWS)]
        found = [(part @ vectors.T).topk(count + 1).indices for part in parts]
        neighbors = torch.cat(found).numpy()
    elif neighbors.ndim != 2 or len(neighbors) != total or neighbors.shape[1] <= count:
        raise ValueError(f"neighbors is {neighbors.shape}, not ({total}, {count + 1} or more)")
    own = neighbors == np.arange(total)[:, None]
    others: NDArray[np.int64] = np.take_along_axis(neighbors, np.argsort(own, axis=1, kind="stable"), 1)[:, :count]
    return others


def _different(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The (U, D) different rows in the order of their first copies, and the (N,) number of each row among them."""
    plain = np.ascontiguousarray(rows) + np.float32(0)  # no −0.0, whose bytes differ from those of 0.0
    keys = plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    _, first, copies = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return plain[first[order]], np.argsort(order)[copies.ravel()]


def _arranged(sample: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32] | None, NDArray[np.int64]]:
    """(G, 2) positions of the G groups of (nearly) equal samples, and the (M,) group of each; None for one group."""
    count, groups = connected_components(csr_array(cdist(sample, sample) <= NEARLY_EQUAL), directed=False)
    if count < 2:
        return None, groups
    groups = np.unique(groups, return_index=True)[1].argsort().argsort()[groups]  # numbered as they appear
    different = sample[np.unique(groups, return_index=True)[1]]
    if count < 10:
        plane = PCA(min(2, *different.shape)).fit_transform(different)
        plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    else:
        perplexity = min(30, (count - 1) / 3)
        plane = TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(different)
    return plane.astype(np.float32), groups


def _placed(
    rows: NDArray[np.float32],
    anchors: NDArray[np.float32],
    arranged: NDArray[np.float32],
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """(U, 2) positions of rows among (G, D) anchors that are arranged at (G, 2); a row that is an anchor lies on it."""
    index, plane = faiss.IndexFlatIP(anchors.shape[1]), faiss.IndexFlatL2(2)
    index.add(np.ascontiguousarray(anchors))
    plane.add(np.ascontiguousarray(arranged))
    near = min(ANCHORS, len(anchors))
    spacing = np.sqrt(np.maximum(plane.search(np.ascontiguousarray(arranged), near)[0][:, -1], 0))
    directions = generator.normal(size=(rows.shape[1], 2)).astype(np.float32)
    placed = np.empty((len(rows), 2), dtype=np.float32)
    for first in range(0, len(rows), ROWS):
        block = rows[first : first + ROWS]
        cosines, found = index.search(block, near)
        nearest = found[:, 0]
        offsets = arranged[found] - arranged[nearest][:, None]
        limit = FAR * spacing[nearest]
        weights = np.exp(SHARPNESS * (cosines - cosines[:, :1]))
        weights *= np.linalg.norm(offsets, axis=2) <= limit[:, None]
        weights /= weights.sum(1, keepdims=True)
        means = np.einsum("nk,nkd->nd", weights, anchors[found])
        moved = (block - means) @ directions
        moved /= np.linalg.norm(block - means, axis=1, keepdims=True).clip(1e-6)
        moved = np.tanh(moved) * (SPREAD * spacing[nearest])[:, None]
        equal = np.linalg.norm(block - anchors[nearest], axis=1) <= NEARLY_EQUAL
        placed[first : first + ROWS] = arranged[nearest]
        placed[first : first + ROWS][~equal] += (np.einsum("nk,nkd->nd", weights, offsets) + moved)[~equal]
    return placed
