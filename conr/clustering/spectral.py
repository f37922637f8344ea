"""The leading eigenvectors of the normalized, regularized affinity of sparse nodes, without a dense matrix."""

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

DENSE = 512  # samples up to which all eigenvectors of a dense matrix cost less than some of a sparse one
TOLERANCE = 1e-4  # of an eigenvalue, relative
ITERATIONS = 40  # of the block power method, where Lanczos' does not converge

Vector = NDArray[np.float64]


class Affinity:
    """D^-½ (A + τ d̄/N 1 1ᵀ) D^-½ of (N, N) sparse nodes H with unit rows, never formed: A = H Hᵀ without its diagonal.

    d̄ is the mean degree of A, and D holds the regularized degrees (Amini et al., Annals of Statistics 2013). It is a
    context: the threads that multiply end with it.

    Args:
        nodes: H; entries must not be negative.
        regularization: τ.

    Attributes:
        scale: (N,) the diagonal of D^-½.
    """

    def __init__(self, nodes: sparse.csr_matrix, regularization: float) -> None:
        self.count = nodes.shape[0]
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        nodes = nodes.astype(np.float64)
        self._rows, self._columns = self._parts(nodes), self._parts(nodes.T.tocsr())
        self._own = np.asarray(nodes.multiply(nodes).sum(1)).ravel()
        self.scale = np.ones(self.count)
        self._regularization = 0.0
        degrees = self @ self.scale
        self._regularization = regularization * degrees.mean() / self.count
        regularized = degrees + regularization * degrees.mean()
        self.scale = 1 / np.sqrt(np.where(regularized > 0, regularized, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def __matmul__(self, vectors: Vector) -> Vector:
        """The product with (N,) or (N, m) vectors."""
        scale, own = (part if vectors.ndim == 1 else part[:, None] for part in (self.scale, self._own))
        scaled = scale * vectors
        shared = self._multiply(self._rows, self._multiply(self._columns, scaled))
        product: Vector = scale * (shared - own * scaled + self._regularization * scaled.sum(0))
        return product

    def _parts(self, matrix: sparse.csr_matrix) -> list[sparse.csr_matrix]:
        """Consecutive rows for each thread, with about as many entries."""
        shares = np.linspace(0, matrix.nnz, self._threads + 1)
        ends = np.searchsorted(matrix.indptr, shares[1:-1]).clip(0, self.count)
        bounds = [0, *ends.tolist(), self.count]
        return [matrix[first:last] for first, last in itertools.pairwise(bounds)]

    def _multiply(self, parts: Iterable[sparse.csr_matrix], vectors: Vector) -> Vector:
        return np.concatenate(list(self._pool.map(lambda part: part @ vectors, parts)))


def leading_eigenvectors(affinity: Affinity, number: int, seed: int) -> tuple[Vector, Vector]:
    """The largest eigenvalues of an affinity, descending, and their eigenvectors of unit length, as columns.

    Args:
        affinity: of N samples.
        number: how many, at most N.
        seed: of the vectors that the iterations start from.

    Returns:
        (number,) and (N, number) float64.
    """
    count = affinity.count
    if count <= DENSE or number >= count - 1:
        values, vectors = np.linalg.eigh(affinity @ np.eye(count))
        return values[::-1][:number].copy(), vectors[:, ::-1][:, :number].copy()
    random = np.random.default_rng(seed)
    operator = LinearOperator((count, count), matvec=lambda vector: affinity @ vector.ravel(), dtype=np.float64)
    try:
        values, vectors = eigsh(operator, number, which="LA", v0=random.random(count), tol=TOLERANCE)
    except ArpackError:  # no convergence included
        values, vectors = _block_power(affinity, number, random)
    order = np.argsort(-values)
    return values[order], vectors[:, order]


def _block_power(affinity: Affinity, number: int, random: np.random.Generator) -> tuple[Vector, Vector]:
    """The same by iterating a block of vectors: it always ends, with vectors close to those of close eigenvalues.

    The eigenvalues lie between −1 and 1; adding 1 keeps those near −1 from being taken for the largest.
    """
    width = min(2 * number + 10, affinity.count)
    block = np.linalg.qr(random.normal(size=(affinity.count, width)))[0]
    for _ in range(ITERATIONS):
        block = np.linalg.qr(affinity @ block + block)[0]
    values, rotation = np.linalg.eigh(block.T @ (affinity @ block))
    return values[-number:], block @ rotation[:, -number:]
