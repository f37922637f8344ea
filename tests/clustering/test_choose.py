"""Proposing K: what each criterion measures, against slow loops, and what is proposed for clear and unclear data."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.datasets import load_digits

from conr.clustering import Proposal, propose_clusters
from conr.clustering.criteria import (
    eigenvalue_ratios,
    graph_eigenvalues,
    merge,
    pairs_together,
    reciprocal_links,
)
from conr.neighbors.graph import conaff_nodes
from conr.neighbors.settings import ConAff
from conr.observer import Observer

Features = NDArray[np.float32]


def groups(count: int, each: int, spread: float = 0.1, seed: int = 0) -> Features:
    """Groups of points around vectors at right angles, in mixed order."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(count), each))
    features = np.eye(count, 16)[labels] + spread * random.normal(size=(len(labels), 16))
    unit: Features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    return unit


def merge_by_loops(links: NDArray[np.float64]) -> list[float]:
    """The largest weight with K = 1 … M clusters left, from lists of members and no running sums."""
    parts = [[number] for number in range(len(links)) if links[number].any()]
    weights = [0.0]
    while len(parts) > 1:
        best = (-1.0, 0, 0)
        for first in range(len(parts)):
            for second in range(first + 1, len(parts)):
                between = sum(links[a, b] for a in parts[first] for b in parts[second])
                fewer = min(sum(links[a].sum() for a in part) for part in (parts[first], parts[second]))
                best = max(best, (between / fewer, -first, -second))
        weights.insert(1, best[0])
        parts[-best[1]] += parts.pop(-best[2])
    return weights


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 9), st.integers(0, 10_000))
def test_merging_agrees_with_a_slow_loop(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    links = np.triu(random.random((count, count)) * (random.random((count, count)) < 0.7))
    links += links.T
    if links.any():
        assert merge(links) == pytest.approx(merge_by_loops(links))


def test_links_join_samples_that_are_among_the_nearest_of_each_other() -> None:
    features, most = groups(3, 10, spread=0.5), 4
    similarity = features.astype(np.float64) @ features.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = [set(row.argsort()[-most:].tolist()) for row in similarity]
    expected = [[float(b in nearest[a] and a in nearest[b]) for b in range(30)] for a in range(30)]
    assert reciprocal_links(features, most).toarray().tolist() == expected


def test_pairs_together_is_the_share_of_pairs_of_the_worst_cluster() -> None:
    clusters, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 2, 2, 0])
    shares = []
    for cluster in range(2):  # the third has one sample and no pair
        members = np.flatnonzero(clusters == cluster)
        pairs = [(a, b) for a in members for b in members if a != b]
        shares.append(np.mean([predicted[a] == predicted[b] for a, b in pairs]))
    assert pairs_together(clusters, predicted, 3) == pytest.approx(min(shares))
    assert pairs_together(np.arange(3), np.arange(3), 3) == 1


def test_the_eigenvalue_ratio_compares_the_distances_from_one() -> None:
    ratios = eigenvalue_ratios(np.array([1.0, 0.9, 0.8, 0.4]), [1, 2, 3, 4])
    assert ratios == pytest.approx([np.nan, 2, 3, np.nan], nan_ok=True)


def test_eigenvalues_are_those_of_the_dense_regularized_affinity() -> None:
    features = groups(3, 60, spread=0.4)
    nodes = conaff_nodes(features, ConAff(k1=11, k2=2))[0].toarray().astype(np.float64)
    affinity = nodes @ nodes.T
    np.fill_diagonal(affinity, 0)
    affinity += 0.1 * affinity.sum(1).mean() / len(affinity)
    scale = 1 / np.sqrt(affinity.sum(1))
    expected = np.linalg.eigvalsh(scale[:, None] * affinity * scale)[::-1]
    assert graph_eigenvalues(features, 5, 0) == pytest.approx(expected[:5], abs=1e-5)
    assert len(graph_eigenvalues(features[:7], 41, 0)) == 7


@pytest.mark.parametrize("count", [2, 3, 6, 11])
def test_well_separated_groups_are_counted(count: int) -> None:
    proposal = propose_clusters(groups(count, 60), range(2, 16))
    assert proposal.clusters == count
    assert proposal.clear
    assert set(proposal.choices.values()) == {count}


@pytest.mark.parametrize(("count", "each"), [(6, 15), (11, 10)])
def test_groups_may_be_smaller_than_the_neighborhoods_of_large_sets(count: int, each: int) -> None:
    proposal = propose_clusters(groups(count, each), range(2, 16))
    assert (proposal.clusters, proposal.clear) == (count, True)


@pytest.mark.parametrize(("apart", "expected"), [(1, 6), (2.5, 2)])
def test_two_halves_count_only_where_they_are_far_more_apart_than_the_groups_within(
    apart: float, expected: int
) -> None:
    labels = np.repeat(np.arange(6), 80)
    features = np.eye(6, 16)[labels] + apart * np.eye(2, 16, 12)[labels // 3]
    features += 0.4 * np.random.default_rng(0).normal(size=features.shape)
    proposal = propose_clusters(features.astype(np.float32), range(2, 10))
    ratios = dict(zip(proposal.candidates, proposal.curves["eigenvalue ratio"], strict=True))
    assert max(ratios, key=lambda number: ratios[number] or 0) == 2
    assert proposal.clusters == expected
    assert proposal.clear


def test_every_criterion_has_a_value_for_each_candidate() -> None:
    proposal = propose_clusters(groups(3, 40), [8, 3, 2, 3])
    assert proposal.candidates == (2, 3, 8)
    assert len(proposal.curves) >= 3
    assert proposal.curves.keys() == proposal.choices.keys()
    assert {len(curve) for curve in proposal.curves.values()} == {3}
    assert proposal.clusters == proposal.choices[proposal.criterion] == 3


def test_digits_are_between_8_and_12() -> None:
    assert 8 <= propose_clusters(load_digits().data, range(5, 16)).clusters <= 12


def test_noise_is_not_clear() -> None:
    noise = np.random.default_rng(0).normal(size=(600, 32)).astype(np.float32)
    assert not propose_clusters(noise, range(2, 16)).clear


def test_the_same_seed_gives_the_same_proposal_and_lengths_do_not_count() -> None:
    features = groups(4, 50, spread=0.4)
    first = propose_clusters(features, range(2, 9), seed=1)
    assert propose_clusters(features, range(2, 9), seed=1) == first
    assert propose_clusters(features, range(2, 9), seed=2) != first
    longer = propose_clusters(
        features * np.linspace(1, 9, len(features), dtype=np.float32)[:, None], range(2, 9), seed=1
    )
    assert longer.choices == first.choices


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_few_images_have_at_most_as_many_clusters(count: int) -> None:
    proposal = propose_clusters(np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32), range(2, 41))
    assert proposal.candidates == tuple(range(2, count + 1))
    assert 2 <= proposal.clusters <= count


def test_candidates_above_the_number_of_different_images_are_left_out() -> None:
    features = np.repeat(np.eye(3, 8, dtype=np.float32), 50, axis=0)
    proposal = propose_clusters(features, range(2, 41))
    assert proposal.candidates == (2, 3)
    assert proposal.clusters == 3


@pytest.mark.parametrize(("count", "distinct"), [(1, 1), (50, 1)])
def test_one_image_or_equal_ones_allow_no_candidate_from_2_on(count: int, distinct: int) -> None:
    features = np.ones((count, 4), np.float32)
    with pytest.raises(ValueError, match=rf"^candidates = .* different samples \({distinct}\)"):
        propose_clusters(features, range(2, 41))
    proposal = propose_clusters(features, range(1, 41))
    assert proposal.candidates == (1,)
    assert not proposal.clear


@pytest.mark.parametrize("candidates", [[], [0, 2], [-1]])
def test_impossible_candidates_are_named(candidates: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^candidates = "):
        propose_clusters(groups(2, 10), candidates)


@pytest.mark.parametrize("features", [np.zeros(4), np.zeros((0, 4)), np.full((4, 2), np.nan)])
def test_impossible_features_are_named(features: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"^features must "):
        propose_clusters(features.astype(np.float32), [2])


def test_an_observer_hears_of_every_criterion() -> None:
    class Notes(Observer):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def step_done(self, amount: int = 1, note: str = "") -> None:
            self.heard.append(note)

    notes = Notes()
    proposal = propose_clusters(groups(2, 20), [2, 3], observer=notes)
    assert notes.heard == list(proposal.curves)


def test_a_proposal_survives_json() -> None:
    proposal = propose_clusters(groups(2, 10), range(1, 20))
    assert None in proposal.curves["silhouette"]  # K = 1
    assert Proposal.model_validate_json(proposal.model_dump_json(indent=1, exclude_none=True)) == proposal


@pytest.mark.parametrize(
    "change",
    [
        {"clusters": 4},
        {"clusters": "3"},
        {"candidates": [3, 2]},
        {"candidates": []},
        {"criterion": "entrails"},
        {"curves": {"silhouette": [0.1]}},
        {"choices": {"silhouette": 7}},
        {"extra": 1},
    ],
)
def test_a_damaged_proposal_is_refused(change: dict[str, Any]) -> None:
    whole = {
        "clusters": 3,
        "candidates": [2, 3],
        "curves": {"silhouette": [0.1, 0.2]},
        "choices": {"silhouette": 3},
        "criterion": "silhouette",
        "clear": True,
    }
    Proposal.model_validate_json(json.dumps(whole))
    with pytest.raises(ValidationError):
        Proposal.model_validate_json(json.dumps(whole | change))
