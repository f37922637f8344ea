"""Scores without labels by hand and against scikit-learn, the table of scores, and means over seeds."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_score

from conr.evaluation.evaluate import evaluate
from conr.evaluation.scores import (
    AGREEMENT,
    SCORES,
    TABLE,
    MeanStd,
    cluster_sizes,
    feature_std,
    silhouette,
    size_entropy,
)
from conr.parameters.groups import Evaluate

# Scores without labels


def test_silhouette_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(300, 5)).astype(np.float32)
    clusters = random.integers(0, 3, 300)
    assert silhouette(features, clusters, seed=0) == float(silhouette_score(features, clusters))


def test_silhouette_of_one_cluster_or_of_single_samples_is_unknown() -> None:
    features = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    assert silhouette(features, np.zeros(6, dtype=np.int64), seed=0) is None
    assert silhouette(features, np.arange(6), seed=0) is None


def test_cluster_sizes_count_empty_clusters() -> None:
    sizes = cluster_sizes(np.array([2, 0, 2, 2]), 5)
    assert sizes.tolist() == [1, 0, 3, 0, 0]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([5, 5, 5], 1.0),
        ([15, 0, 0], 0.0),
        ([5, 5, 0, 0], 0.5),
        ([3, 1], (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)),
        ([9], 1.0),
    ],
)
def test_size_entropy_by_hand(sizes: list[int], expected: float) -> None:
    assert size_entropy(np.array(sizes)) == pytest.approx(expected, abs=1e-12)


def test_feature_std_is_zero_when_collapsed_and_near_one_when_random() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert feature_std(np.repeat(features[:1], 50, axis=0)) == pytest.approx(0, abs=1e-6)
    assert feature_std(features) == pytest.approx(1, abs=0.02)
    assert feature_std(features) == pytest.approx(features.astype(np.float64).std(axis=0).mean() * 8, rel=1e-5)
    assert feature_std(torch.from_numpy(features)) == feature_std(features)


# The table


def test_titles_are_unique_and_every_score_has_a_meaning() -> None:
    titles = [score.title for score in SCORES.values()]
    assert len(set(titles)) == len(titles)
    assert all(score.title.strip() and score.meaning.strip() for score in SCORES.values())


def test_the_scores_of_papers_come_first_in_the_tables_for_people() -> None:
    assert TABLE[:3] == AGREEMENT
    assert all(SCORES[key].in_tables for key in TABLE)
    assert all(SCORES[key].higher_is_better for key in AGREEMENT)


@pytest.mark.parametrize("labeled", [True, False])
def test_every_score_of_an_evaluation_is_in_the_table(labeled: bool) -> None:
    embeddings = np.eye(4, dtype=np.float32).repeat(5, axis=0)
    found = evaluate(
        embeddings, np.repeat(np.arange(4), 5) if labeled else None, 4, Evaluate(n_init=2, max_iter=5), seed=0
    )
    assert found.scores.keys() <= SCORES.keys()
    assert set(TABLE) - found.scores.keys() == (set() if labeled else {"acc", "nmi", "ari", "class_acc"})


# Means over seeds


@settings(derandomize=True, deadline=None, max_examples=60)
@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=6), scale=st.sampled_from([1.0, 100.0]))
def test_mean_and_sample_standard_deviation(values: list[float], scale: float) -> None:
    found = MeanStd.of(values, scale)
    assert found.mean == pytest.approx(scale * statistics.mean(values), abs=1e-9)
    assert found.count == len(values)
    if len(values) == 1:
        assert found.std is None
    else:
        assert found.std == pytest.approx(scale * statistics.stdev(values), abs=1e-6)


def test_any_iterable_has_a_mean() -> None:
    assert MeanStd.of(value / 4 for value in (1, 2, 3)) == MeanStd(0.5, 0.25, 3)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(statistics.StatisticsError):
        MeanStd.of([])


@pytest.mark.parametrize(
    ("value", "specification", "text"),
    [
        (MeanStd(0.97449, 0.0081, 5), ".3f", "0.974 ± 0.008"),
        (MeanStd(0.97449, None, 1), ".3f", "0.974"),
        (MeanStd(92.57, 0.96, 5), ".1f", "92.6 ± 1.0"),
        (MeanStd(0.5, 0.25, 2), "", "0.5 ± 0.25"),
        (MeanStd(-0.25, 0.0, 2), ".2f", "-0.25 ± 0.00"),
    ],
)
def test_both_numbers_are_formatted_alike(value: MeanStd, specification: str, text: str) -> None:
    assert format(value, specification) == text
