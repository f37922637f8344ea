"""Neighbor purity by hand and against a plain loop, with unknown labels and samples among their own neighbors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conr.neighbors.purity import neighbor_purity, purity_by_rank

repeatable = settings(derandomize=True, deadline=None, max_examples=150)


def slow_purity(labels: list[int], neighbors: list[list[int]], queries: list[int]) -> list[list[float]]:
    """For each query the purity of its first 1, 2 … neighbors; not a number where none counts."""
    rows = []
    for query, ranking in zip(queries, neighbors, strict=True):
        rows.append([])
        for rank in range(1, len(ranking) + 1):
            counted = [other for other in ranking[:rank] if other != query and labels[other] >= 0]
            if labels[query] < 0 or not counted:
                rows[-1].append(math.nan)
            else:
                rows[-1].append(sum(labels[other] == labels[query] for other in counted) / len(counted))
    return rows


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], list[list[int]], list[int]]:
    """Labels of which some are unknown, queries, and neighbors: the query is the first, another one, or missing."""
    count = draw(st.integers(2, 12))
    labels = draw(st.lists(st.integers(-1, 2), min_size=count, max_size=count))
    queries = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=8))
    k = draw(st.integers(1, count - 1))
    rankings = [draw(st.permutations(range(count))) for _ in queries]
    own_first = draw(st.booleans())
    rows = [
        ([query] if own_first else []) + [other for other in ranking if other != query or not own_first]
        for query, ranking in zip(queries, rankings, strict=True)
    ]
    return labels, [row[:k] for row in rows], queries


@repeatable
@given(case=cases())
def test_purity_equals_its_loop(case: tuple[list[int], list[list[int]], list[int]]) -> None:
    labels, neighbors, queries = case
    arguments = torch.tensor(labels), torch.tensor(neighbors), torch.tensor(queries)
    expected = np.array(slow_purity(labels, neighbors, queries))
    found = purity_by_rank(*arguments)
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), expected)
    known = [row[-1] for row in expected if not math.isnan(row[-1])]
    mean = sum(known) / len(known) if known else math.nan
    assert neighbor_purity(*arguments) == pytest.approx(mean, abs=1e-12, nan_ok=True)


def test_purity_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    neighbors = torch.tensor([[0, 1, 2], [1, 0, 2], [0, 1, 3], [3, 2, 2]])
    # One of two; one of two; one of three (it is not its own neighbor); both.
    assert purity_by_rank(labels, neighbors)[:, -1].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1])
    assert neighbor_purity(labels, neighbors) == pytest.approx((1 / 2 + 1 / 2 + 1 / 3 + 1) / 4)


def test_samples_without_another_neighbor_are_left_out() -> None:
    labels, neighbors = torch.tensor([0, 0, 1]), torch.tensor([[0, 0], [0, 2], [2, 2]])
    assert neighbor_purity(labels, neighbors) == pytest.approx(0.5)


def test_purity_of_chosen_queries_equals_that_of_their_rows() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    neighbors = torch.tensor([[0, 1, 2], [1, 0, 3], [2, 3, 0], [3, 2, 2]])
    chosen = torch.tensor([3, 0])
    assert neighbor_purity(labels, neighbors[chosen], chosen) == pytest.approx((1.0 + 0.5) / 2)


def test_without_any_known_label_purity_is_not_a_number() -> None:
    labels = torch.full((3,), -1)
    assert math.isnan(neighbor_purity(labels, torch.tensor([[1, 2], [0, 2], [0, 1]])))
