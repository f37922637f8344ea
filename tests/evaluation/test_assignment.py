"""Where samples lie among centroids, against plain loops and the boundary ratio of training."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conr.evaluation import assignment as module
from conr.evaluation.assignment import Assignment, assign
from conr.neighbors.boundary import boundary_ratio


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_case(clusters: int, count: int = 50) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings and centroids."""
    generator = np.random.default_rng(clusters)
    return unit(generator.normal(size=(count, 6))), unit(generator.normal(size=(clusters, 6)))


@pytest.mark.parametrize("clusters", [2, 3, 7])
def test_an_assignment_is_that_of_a_loop(clusters: int) -> None:
    embeddings, centroids = random_case(clusters)
    found = assign(embeddings, centroids)
    for row, embedding in enumerate(embeddings.tolist()):
        distances = [math.dist(embedding, centroid) for centroid in centroids.tolist()]
        first, second = sorted(range(clusters), key=distances.__getitem__)[:2]
        own, other = distances[first], distances[second]
        assert (found.clusters[row], found.next_cluster[row]) == (first, second)
        assert found.own_distance[row] == pytest.approx(own, abs=1e-6)
        assert found.next_distance[row] == pytest.approx(other, abs=1e-6)
        assert found.boundary_ratio[row] == pytest.approx(1 - (other - own) / max(own, other), abs=1e-5)


@pytest.mark.parametrize("clusters", [2, 3, 7])
def test_the_boundary_ratio_is_own_to_next_distance_and_that_of_training(clusters: int) -> None:
    embeddings, centroids = random_case(clusters)
    found = assign(embeddings, centroids)
    np.testing.assert_allclose(found.boundary_ratio, found.own_distance / found.next_distance, rtol=1e-6)
    expected = boundary_ratio(*map(torch.from_numpy, (embeddings, found.clusters, centroids)))
    np.testing.assert_allclose(found.boundary_ratio, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("clusters", [2, 3, 7])
def test_of_clusters_that_are_known_only_the_distances_are_computed(
    clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 8 * clusters)
    monkeypatch.setattr(module, "ROWS", 3)
    embeddings, centroids = random_case(clusters)
    known = np.random.default_rng(0).integers(0, clusters, len(embeddings))
    found = assign(embeddings, centroids, known)
    np.testing.assert_array_equal(found.clusters, known)
    for row, embedding in enumerate(embeddings.tolist()):
        distances = [math.dist(embedding, centroid) for centroid in centroids.tolist()]
        own = distances[known[row]]
        other, number = min((distances[number], number) for number in range(clusters) if number != known[row])
        assert found.next_cluster[row] == number
        assert found.own_distance[row] == pytest.approx(own, abs=1e-6)
        assert found.next_distance[row] == pytest.approx(other, abs=1e-6)
        assert found.boundary_ratio[row] == pytest.approx(1 - (other - own) / max(own, other), abs=1e-5)
    assert found.boundary_ratio.max() > 1
    expected = boundary_ratio(*map(torch.from_numpy, (embeddings, known, centroids)))
    np.testing.assert_allclose(found.boundary_ratio, expected.numpy(), rtol=0, atol=1e-5)


def test_names_and_positions_are_further_columns_of_the_table() -> None:
    assignment = assign(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    positions = np.array([[1, 2], [np.nan, 0], [-0.12345, 4]], dtype=np.float32)
    columns, rows = assignment.table(["a", "b", "c"], ["x", "y", ""], names={1: "=1", 2: "owls"}, positions=positions)
    assert columns[-4:] == ["label", "name", "x", "y"]
    assert [row[-4:] for row in rows] == [
        ["x", "", "1.0000", "2.0000"],
        ["y", "'=1", None, "0.0000"],
        ["", "owls", "-0.1235", "4.0000"],
    ]
    assert assignment.table(["a", "b", "c"], names={})[0] == columns[:-4]


def test_a_sample_on_a_centroid_and_one_half_way() -> None:
    embeddings = unit(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]))
    found = assign(embeddings, np.eye(3, dtype=np.float32))
    assert found.clusters[0] == 1
    assert found.own_distance[0] == 0
    assert found.next_distance[0] == pytest.approx(np.sqrt(2))
    assert found.boundary_ratio.tolist() == pytest.approx([0, 1], abs=1e-6)
    assert {found.clusters[1], found.next_cluster[1]} == {0, 2}


def test_a_sample_on_two_coinciding_centroids_is_on_the_boundary() -> None:
    centroids = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    found = assign(centroids[:1], centroids)
    assert (found.own_distance[0], found.next_distance[0]) == (0, 0)
    assert {found.clusters[0], found.next_cluster[0]} == {0, 1}
    assert found.boundary_ratio.tolist() == [1.0]
    in_training = boundary_ratio(*map(torch.from_numpy, (centroids[:1], found.clusters, centroids)))
    assert in_training.tolist() == [1.0]


def test_an_assignment_has_one_entry_a_sample_and_its_types() -> None:
    found = assign(*random_case(3, count=75))
    types = {name: values.dtype for name, values in vars(found).items()}
    assert types == {
        "clusters": np.int64,
        "own_distance": np.float32,
        "next_cluster": np.int64,
        "next_distance": np.float32,
    }
    assert found.boundary_ratio.dtype == np.float32
    assert {values.shape for values in (*vars(found).values(), found.boundary_ratio)} == {(75,)}


@pytest.mark.parametrize("block", [1, 3 * 7, 3 * 75])
def test_the_size_of_the_blocks_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, centroids = random_case(3, count=75)
    whole = vars(assign(embeddings, centroids))
    monkeypatch.setattr(module, "BLOCK", block)
    for name, values in vars(assign(embeddings, centroids)).items():
        np.testing.assert_array_equal(values, whole[name])


def test_the_table_has_a_row_a_sample_and_labels_where_there_are_any() -> None:
    found = Assignment(
        np.array([2, 0]), np.float32([0.25, 0.5]), np.array([1, 1]), np.float32([0.75, 0.5]),
    )  # fmt: skip
    columns, rows = found.table(["a.png", "b.png"])
    assert columns == ["file", "cluster", "own_distance", "next_cluster", "next_distance", "boundary_ratio"]
    assert rows == [["a.png", 2, "0.2500", 1, "0.7500", "0.3333"], ["b.png", 0, "0.5000", 1, "0.5000", "1.0000"]]
    labeled, rows = found.table(["a.png", "b.png"], ["cat", ""])
    assert labeled == [*columns, "label"]
    assert [row[-1] for row in rows] == ["cat", ""]
