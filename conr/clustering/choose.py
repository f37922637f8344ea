"""The number of clusters K, proposed from features without labels.

Which criterion decides, and every constant, was settled on some sets and checked on others: docs/lab/choosing-k.md.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator
from sklearn.preprocessing import normalize

from conr.clustering.criteria import (
    eigenvalue_ratios,
    graph_eigenvalues,
    merge_weights,
    prediction_strengths,
    silhouettes,
)
from conr.observer import SILENT, Observer

SAMPLES = 4_000  # drawn at random from more: what the criteria on a graph see
KMEANS_SAMPLES = 2_000  # of them, what those on k-means see
BELOW = {"merge weight": 0.07}  # the largest K below this threshold is chosen
FROM = {"prediction strength": 0.8}  # the largest K from this threshold on is chosen: the source's own rule
DECISIVE, CLEAR_FROM = "eigenvalue ratio", 1.2
TWO_FROM = 2.0  # times the next best eigenvalue ratio: from there on K = 2 is chosen

Curve = NDArray[np.float64]


class Proposal(BaseModel):
    """A number of clusters, and what speaks for it. It is written and read as JSON by `conr.files`.

    Attributes:
        clusters: the proposed K, one of the candidates.
        candidates: values of K that were compared, ascending.
        curves: criterion → value at each candidate; None where it is not defined.
        choices: criterion → the candidate that it chooses; None if it speaks for none.
        criterion: the one that chose `clusters`.
        clear: False if nothing speaks for any K: then `clusters` is no more than a guess.

    >>> proposal = conr.propose_clusters(numpy.eye(3, 8).repeat(20, axis=0), [2, 3])
    >>> conr.Proposal.model_validate_json(proposal.model_dump_json()) == proposal
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    clusters: int
    candidates: tuple[int, ...]
    curves: dict[str, tuple[float | None, ...]]
    choices: dict[str, int | None]
    criterion: str
    clear: bool

    @model_validator(mode="after")
    def _fits_together(self) -> "Proposal":
        if not self.candidates or list(self.candidates) != sorted({*self.candidates}) or self.candidates[0] < 1:
            raise ValueError("candidates must be ascending numbers of at least 1")
        if self.curves.keys() != self.choices.keys() or self.criterion not in self.choices:
            raise ValueError("curves and choices must be of the same criteria, criterion one of them")
        if any(len(curve) != len(self.candidates) for curve in self.curves.values()):
            raise ValueError("each curve must have a value for each candidate")
        if not {self.clusters, *self.choices.values()} <= {None, *self.candidates}:
            raise ValueError("clusters and choices must be candidates")
        return self


def propose_clusters(
    features: NDArray[np.float32], candidates: Sequence[int], *, seed: int = 0, observer: Observer = SILENT
) -> Proposal:
    """Propose a number of clusters for unlabeled features.

    Four criteria see the features, each described in `conr.clustering.criteria`; the eigenvalue ratio decides. It and
    the silhouette choose the K of their highest value; but the ratio chooses 2 only where it is twice as high there as
    anywhere else, since two halves of a data set are often the first division of more groups. The prediction strength
    chooses the largest K with a value of at least 0.8, the merge weight the largest with one below 0.07.

    Of more than 4,000 samples, 4,000 are drawn at random, of them 2,000 for the criteria on k-means: a group of less
    than a hundredth of the samples is then too small to be counted.

    Args:
        features: (N, D); only directions count, rows are scaled to unit length.
        candidates: values of K to compare, such as range(2, 41). Those above the number of different samples are left
            out.
        seed: of samples and of k-means.
        observer: notified of every criterion.

    Raises:
        ValueError: features that are not finite or not of two dimensions; or no candidate is possible.

    >>> groups = numpy.eye(6, 16).repeat(60, axis=0)
    >>> features = groups + 0.1 * numpy.random.default_rng(0).normal(size=groups.shape)
    >>> proposal = conr.propose_clusters(features, range(2, 13))
    >>> proposal.clusters, proposal.clear
    (6, True)
    """
    unit = _unit(features)
    possible = _possible(candidates, len(np.unique(unit, axis=0)))
    chosen = np.random.default_rng(seed).permutation(len(unit))[:SAMPLES]
    many, few = unit[np.sort(chosen)], unit[np.sort(chosen[:KMEANS_SAMPLES])]
    calls: dict[str, Callable[[], Curve]] = {
        "merge weight": lambda: merge_weights(many, possible, seed),
        "eigenvalue ratio": lambda: eigenvalue_ratios(graph_eigenvalues(many, max(possible) + 1, seed), possible),
        "prediction strength": lambda: prediction_strengths(few, possible, seed),
        "silhouette": lambda: silhouettes(few, possible, seed),
    }
    curves, choices = {}, {}
    with observer.task("number of clusters", len(calls)):
        for name, measure in calls.items():
            values = measure()
            curves[name] = tuple(float(value) if np.isfinite(value) else None for value in values)
            choices[name] = _choice(name, values, possible)
            observer.step_done(note=name)
    decided = choices[DECISIVE]
    return Proposal(
        clusters=possible[0] if decided is None else decided,
        candidates=possible,
        curves=curves,
        choices=choices,
        criterion=DECISIVE,
        clear=decided is not None and (curves[DECISIVE][possible.index(decided)] or 0) >= CLEAR_FROM,
    )


def _choice(criterion: str, curve: Curve, candidates: tuple[int, ...]) -> int | None:
    """The candidate that a criterion speaks for: see `propose_clusters`."""
    numbers, defined = np.array(candidates), np.isfinite(curve)
    if criterion in BELOW:
        passed = defined & (curve < BELOW[criterion])
    elif criterion in FROM:
        passed = defined & (curve >= FROM[criterion])
    else:
        values = np.where(defined, curve, -np.inf)
        if criterion == DECISIVE:
            values[numbers == 2] /= TWO_FROM
        passed = defined & (values == values.max())
    return int(numbers[passed].max()) if passed.any() else None


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length; a row of zeros stays one."""
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must have shape (N, D) with at least one sample, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite numbers")
    unit: NDArray[np.float32] = normalize(features)
    return unit


def _possible(candidates: Sequence[int], distinct: int) -> tuple[int, ...]:
    """The candidates that so many different samples allow, ascending."""
    numbers = sorted({int(candidate) for candidate in candidates})
    if not numbers or numbers[0] < 1:
        raise ValueError(f"candidates = {candidates} must be numbers of clusters of at least 1")
    possible = tuple(number for number in numbers if number <= distinct)
    if not possible:
        raise ValueError(
            f"candidates = {candidates} must begin at most at the number of different samples ({distinct})"
        )
    return possible
