"""Purity curves against plain loops, and the verdicts on what is retrieved."""

import math

import numpy as np
import pytest
from conaff_oracle import slow_affinity, slow_conaff
from numpy.typing import NDArray

from conr.neighbors.settings import ConAff
from conr.neighbors.study import MOST_CONTEXTS, choose_queries, contexts, purity_curves, retrieved

CONAFF = ConAff(k1=6, k2=3, alpha=2.0, layers=2, symmetrize=True, normalize=True)


def blobs(seed: int, count: int, classes: int = 4, noise: float = 0.6) -> tuple[NDArray, NDArray[np.int64]]:
    """Overlapping blobs of unit vectors in float64, so that the loops and conr rank alike."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    features = np.eye(8)[labels] + noise * generator.normal(size=(count, 8))
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


def centroids_of(features: NDArray, labels: NDArray[np.int64]) -> NDArray:
    return np.stack([features[labels == label].mean(axis=0) for label in range(labels.max() + 1)])


def nearest_first(features: NDArray, query: int) -> list[int]:
    return sorted(
        (other for other in range(len(features)) if other != query),
        key=lambda other: (math.dist(features[query], features[other]), other),
    )


def kept_by_the_filter(features: NDArray, assignments: NDArray, centroids: NDArray, fr: float) -> set[int]:
    ratios = []
    for feature, own in zip(features, assignments, strict=True):
        intra = math.dist(feature, centroids[own])
        other = min(math.dist(feature, centroid) for k, centroid in enumerate(centroids) if k != own)
        ratios.append(1 - (other - intra) / max(intra, other))
    order = sorted(range(len(ratios)), key=lambda i: (ratios[i], i))
    return set(order[: math.ceil(fr * len(ratios) - 1e-9)])


def slow_purity(shares: dict[int, list[float]], labels: NDArray, rows: dict[int, list[int]]) -> None:
    """Add to `shares`, by K, the purity of each query whose first K neighbors have a known label among them."""
    for query, ranking in rows.items():
        for k in shares:
            known = [other for other in ranking[:k] if labels[other] >= 0]
            if labels[query] >= 0 and known:
                shares[k].append(sum(labels[other] == labels[query] for other in known) / len(known))


@pytest.mark.parametrize("unknown", [0.0, 0.7])
def test_curves_are_those_of_plain_loops(unknown: float) -> None:
    features, labels = blobs(0, 65)
    centroids, assignments = centroids_of(features, labels), labels.copy()
    labels[np.random.default_rng(1).random(65) < unknown] = -1
    found = purity_curves(
        features, labels, centroids, assignments, fr=0.6, context=20, largest=7, seed=3, settings=CONAFF
    )

    order = np.random.default_rng(3).permutation(65)
    local, affine, clean = ({k: [] for k in range(1, 8)} for _ in range(3))
    for start in (0, 20, 40):  # five images fill no group
        group = order[start : start + 20]
        near = {i: nearest_first(features[group], i) for i in range(20)}
        affinity = slow_affinity(features[group].tolist(), 6, 3, 2.0, 2, True, True)
        context = {i: [j for j in row if j != i][:7] for i, row in enumerate(slow_conaff(affinity, 8))}
        kept = kept_by_the_filter(features[group], assignments[group], centroids, 0.6)
        assert len(kept) == 12
        slow_purity(local, labels[group], near)
        slow_purity(affine, labels[group], context)
        slow_purity(clean, labels[group], {i: row for i, row in context.items() if i in kept})

    assert found.neighbors.tolist() == list(range(1, 8))
    for curve, expected in ((found.local, local), (found.conaff, affine), (found.conaff_filtered, clean)):
        np.testing.assert_allclose(curve, [np.mean(expected[k]) for k in range(1, 8)], atol=1e-12)


def test_every_query_counts_with_all_candidates_and_fewer_images_than_a_context_are_one_group() -> None:
    features, labels = blobs(1, 30)
    centroids = centroids_of(features, labels)
    found = purity_curves(features, labels, centroids, labels, fr=1.0, context=256, seed=0, settings=CONAFF)
    assert found.neighbors[-1] == 29  # all others: the ranking no longer matters
    np.testing.assert_array_equal(found.conaff, found.conaff_filtered)
    same = [(labels == label).sum() - 1 for label in labels]
    assert found.local[-1] == found.conaff[-1] == pytest.approx(np.mean(same) / 29)


def test_an_unknown_label_is_neither_query_nor_neighbor() -> None:
    features = np.array([[1, 0], [0.99, 0.1], [0.9, 0.4], [0, 1]])
    settings = ConAff(k1=2, k2=1, alpha=2.0, layers=2, symmetrize=True, normalize=True)
    found = purity_curves(
        features,
        np.array([0, -1, 0, 1]),
        features[[0, 3]],
        np.array([0, 0, 0, 1]),
        fr=1.0,
        context=4,
        largest=3,
        seed=0,
        settings=settings,
    )
    # K = 1: 0 → 1 and 2 → 1 are unknown and do not count, 3 → 2 is wrong. K = 2: 0 → 2 right, 2 → 0 right, 3 → 2 wrong.
    np.testing.assert_allclose(found.local, [0, 2 / 3, (0.5 + 0.5 + 0) / 3])


def test_no_known_label_is_not_a_number() -> None:
    features, labels = blobs(2, 30)
    nothing = np.full(30, -1)
    found = purity_curves(
        features, nothing, centroids_of(features, labels), labels, fr=0.5, context=30, seed=0, settings=CONAFF
    )
    assert np.isnan([found.local, found.conaff, found.conaff_filtered]).all()


def test_an_impossible_setting_is_named() -> None:
    features, labels = blobs(3, 30)
    with pytest.raises(ValueError, match="k1 = 6"):
        purity_curves(
            features, labels, centroids_of(features, labels), labels, fr=1, context=5, seed=0, settings=CONAFF
        )


def test_contexts_are_disjoint_shuffled_and_at_most_forty() -> None:
    groups = contexts(1_000, 20, seed=5)
    assert groups.shape == (MOST_CONTEXTS, 20)
    assert len(np.unique(groups)) == 800
    np.testing.assert_array_equal(groups, contexts(1_000, 20, seed=5))
    assert (groups != contexts(1_000, 20, seed=6)).any()
    assert contexts(59, 20, seed=0).shape == (2, 20)
    assert sorted(contexts(7, 20, seed=0)[0]) == list(range(7))


class TestRetrieved:
    def test_the_lists_and_verdicts_are_those_of_loops(self) -> None:
        features, labels = blobs(4, 40, noise=0.9)
        labels[::9] = -1
        affinity = slow_affinity(features.tolist(), 6, 3, 2.0, 2, True, True)
        context = slow_conaff(affinity, 11)
        queries = np.array([3, 9, 20])
        seen = set()
        for item, query in zip(retrieved(features, labels, queries, settings=CONAFF), queries, strict=True):
            assert item.query == query
            assert item.local.tolist() == nearest_first(features, query)[:10]
            assert item.conaff.tolist() == [other for other in context[query] if other != query]
            for others, verdicts, new_counts in (
                (item.local, item.local_verdicts, False),
                (item.conaff, item.conaff_verdicts, True),
            ):
                for other, verdict in zip(others, verdicts, strict=True):
                    if labels[query] < 0 or labels[other] < 0:
                        expected = None
                    elif labels[query] != labels[other]:
                        expected = "wrong"
                    else:
                        expected = "hard positive" if new_counts and other not in item.local else "right"
                    assert verdict == expected
                    seen.add(verdict)
        assert seen == {None, "wrong", "right", "hard positive"}

    def test_without_labels_there_is_no_verdict(self) -> None:
        features, _ = blobs(5, 30)
        (item,) = retrieved(features, None, np.array([4]), neighbors=5, settings=CONAFF)
        assert item.local_verdicts == item.conaff_verdicts == [None] * 5

    def test_a_tiny_context_has_fewer_neighbors(self) -> None:
        features, labels = blobs(6, 4)
        settings = ConAff(k1=2, k2=1, alpha=2.0, layers=1, symmetrize=True, normalize=True)
        (item,) = retrieved(features, labels, np.array([1]), settings=settings)
        assert sorted(item.local) == sorted(item.conaff) == [0, 2, 3]

    @pytest.mark.parametrize("normalize", [True, False])
    def test_the_query_is_never_its_own_neighbor(self, normalize: bool) -> None:
        features, labels = blobs(7, 40, noise=1.5)
        settings = ConAff(k1=12, k2=8, alpha=2.0, layers=2, symmetrize=True, normalize=normalize)
        for item in retrieved(features, labels, np.arange(40), neighbors=5, settings=settings):
            assert len(item.conaff) == 5
            assert item.query not in item.conaff
            assert item.query not in item.local


class TestChooseQueries:
    def shared(self, features: NDArray, neighbors: int = 10) -> list[int]:
        found = retrieved(features, None, np.arange(len(features)), neighbors=neighbors, settings=CONAFF)
        return [len(set(item.local) & set(item.conaff)) for item in found]

    def test_without_labels_those_whose_lists_differ_most(self) -> None:
        features, _ = blobs(8, 60)
        shared = self.shared(features)
        expected = sorted(range(60), key=lambda i: (shared[i], i))[:8]
        assert choose_queries(features, None, settings=CONAFF).tolist() == expected
        assert choose_queries(features, np.full(60, -1), settings=CONAFF).tolist() == expected

    def test_with_labels_one_of_each_of_the_most_frequent_classes_first(self) -> None:
        features, labels = blobs(9, 60)
        labels[labels == 3] = -1
        shared = self.shared(features)
        sizes = np.bincount(labels[labels >= 0])
        expected = [
            sorted(np.flatnonzero(labels == label), key=lambda i: (shared[i], i))[turn]
            for turn in range(2)
            for label in sorted(range(3), key=lambda label: (-sizes[label], label))
        ]
        assert choose_queries(features, labels, count=5, settings=CONAFF).tolist() == expected[:5]

    def test_a_class_that_runs_out_is_skipped(self) -> None:
        features, _ = blobs(10, 30)
        labels = np.zeros(30, dtype=np.int64)
        labels[7] = 1
        chosen = choose_queries(features, labels, count=4, settings=CONAFF).tolist()
        assert chosen[1] == 7
        assert len(set(chosen)) == 4
