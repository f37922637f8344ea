"""Clusters of vectors in files: those of a sample, whatever the files and blocks, and as good as those of all."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from conr.clustering import large
from conr.clustering.graph import graph_clusters
from conr.clustering.kmeans import kmeans
from conr.clustering.large import graph_clusters_large, kmeans_large
from conr.clustering.votes import Voters, assign_by_neighbors
from conr.errors import UserError
from conr.evaluation.agreement import Agreement
from conr.vectors import Vectors

COUNT, DIMENSION, GROUPS = 3000, 16, 5


def grouped() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(0)
    groups = random.integers(0, GROUPS, COUNT)
    rows = random.normal(size=(GROUPS, DIMENSION))[groups] + 0.4 * random.normal(size=(COUNT, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), groups


def write(folder: Path, rows: NDArray[np.float32], edges: list[int], kind: str = "npy", null: int = -1) -> Vectors:
    folder.mkdir(exist_ok=True)
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        if kind == "npy":
            np.save(folder / f"{number:03}.npy", rows[first:last])
            continue
        mask = pa.array(np.arange(first, last) == null)
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows[first:last].ravel()), rows.shape[1], mask=mask)
        pq.write_table(pa.table({"embedding": column, "file": ["x"] * len(column)}), folder / f"{number:03}.parquet")
    return Vectors.opened([folder])


@settings(max_examples=20, deadline=None)
@given(
    bounds=st.sets(st.integers(0, 60), max_size=5), rows=st.integers(5, 70), kind=st.sampled_from(["npy", "parquet"])
)
def test_blocks_are_all_vectors_in_order_whatever_the_files(
    tmp_path_factory: pytest.TempPathFactory, bounds: set[int], rows: int, kind: str
) -> None:
    features = grouped()[0][:60]
    vectors = write(tmp_path_factory.mktemp("vectors"), features, sorted(bounds | {0, 60}), kind)
    blocks = list(vectors.blocks(rows))
    assert max(map(len, blocks)) <= rows
    np.testing.assert_array_equal(np.concatenate(blocks), features)
    assert (len(vectors), vectors.dimension) == (60, DIMENSION)
    sampled = vectors.sample(25, 0, rows)
    places = [int(np.flatnonzero((features == row).all(1))[0]) for row in sampled]
    assert len(places) == 25 == len(set(places))
    assert places == sorted(places)
    np.testing.assert_array_equal(vectors.sample(100, 0, rows), features)


def test_k_means_of_a_sample_is_nearly_as_good_as_of_all_and_assigns_to_the_nearest_centroid(tmp_path: Path) -> None:
    features, groups = grouped()
    vectors = write(tmp_path / "vectors", features, [0, 700, 700, 2500, COUNT])
    found = kmeans_large(vectors, GROUPS, tmp_path / "clusters.npy", seed=0, n_init=5)
    assert len(found.sampled) == 256 * GROUPS
    clusters = np.load(tmp_path / "clusters.npy")
    assert (clusters.dtype, clusters.shape) == (np.int32, (COUNT,))
    distances = np.linalg.norm(features[:, None].astype(np.float64) - found.centroids[None], axis=2)
    np.testing.assert_array_equal(clusters, distances.argmin(1))
    np.testing.assert_array_equal(found.sizes, np.bincount(clusters, minlength=GROUPS))
    inertia = float((distances.min(1) ** 2).sum())
    assert inertia <= 1.01 * kmeans(features, GROUPS, seed=0, n_init=5).inertia
    assert Agreement(groups, clusters.astype(np.int64)).accuracy > 0.95


@pytest.mark.parametrize("method", [kmeans_large, graph_clusters_large])
def test_files_and_blocks_change_nothing_and_a_null_has_no_cluster(
    method: "object", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, _ = grouped()
    one = write(tmp_path / "one", features, [0, COUNT])
    many = write(tmp_path / "many", features, [0, 17, 1000, 2999, COUNT])
    parquet = write(tmp_path / "parquet", features, [0, 2000, COUNT], "parquet", null=1234)
    whole, blocks, nulls = (tmp_path / f"{name}.npy" for name in ("whole", "blocks", "nulls"))
    options = {"nodes": 800} if method is graph_clusters_large else {}
    method(one, GROUPS, whole, seed=0, **options)  # type: ignore[operator]
    monkeypatch.setattr(large, "ROWS", 100)
    method(many, GROUPS, blocks, seed=0, **options)  # type: ignore[operator]
    np.testing.assert_array_equal(np.load(blocks), np.load(whole))
    found = method(parquet, GROUPS, nulls, seed=0, **options)  # type: ignore[operator]
    assert np.flatnonzero(np.load(nulls) < 0).tolist() == [1234]
    assert found.sizes.sum() == COUNT - 1


def test_the_graph_of_a_sample_finds_what_the_graph_of_all_finds(tmp_path: Path) -> None:
    features, groups = grouped()
    vectors = write(tmp_path / "vectors", features, [0, COUNT])
    found = graph_clusters_large(vectors, GROUPS, tmp_path / "clusters.npy", nodes=600)
    clusters = np.load(tmp_path / "clusters.npy").astype(np.int64)
    assert len(found.sampled) == 600
    assert Agreement(graph_clusters(features, GROUPS).assignments, clusters).accuracy > 0.97
    assert Agreement(groups, clusters).accuracy > 0.97
    own = [int(np.flatnonzero((features == row).all(1))[0]) for row in found.sampled[:50]]
    np.testing.assert_array_equal(clusters[own], found.assignments[:50])
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)


def test_votes_from_an_index_are_those_of_all_stored_samples_but_for_what_it_misses() -> None:
    features, groups = grouped()
    exact, _ = assign_by_neighbors(features[2000:], features[:2000], groups[:2000], GROUPS)
    found, confidence = Voters(features[:2000], groups[:2000], GROUPS, approximate=True).assign(features[2000:])
    assert (found == exact).mean() > 0.99
    assert ((confidence > 0) & (confidence <= 1)).all()


def test_files_that_are_no_vectors_are_named(tmp_path: Path) -> None:
    def refused(*paths: Path) -> str:
        with pytest.raises(UserError) as error:
            list(Vectors.opened(paths).blocks(100))
        return str(error.value)

    features = grouped()[0][:50]
    (tmp_path / "none").mkdir()
    assert "no .npy or .parquet file there" in refused(tmp_path / "none")
    np.save(tmp_path / "wide.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "ours.npy", features)
    said = refused(tmp_path / "ours.npy", tmp_path / "wide.npy")
    assert said == f"{tmp_path}/wide.npy holds vectors of 4 numbers, {tmp_path}/ours.npy of {DIMENSION}"
    for name, array in {
        "int": np.zeros((3, 4), int),
        "flat": np.zeros(5),
        "fortran": np.zeros((3, 4), order="F"),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert f"{name}.npy is missing or damaged, or holds no vectors" in refused(tmp_path / f"{name}.npy")
    content = (tmp_path / "ours.npy").read_bytes()
    (tmp_path / "ours.npy").write_bytes(content[:-500])
    assert "ours.npy has" in refused(tmp_path / "ours.npy")
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "other.parquet")
    assert "other.parquet is missing or damaged" in refused(tmp_path / "other.parquet")


def test_fewer_vectors_than_clusters_are_refused(tmp_path: Path) -> None:
    vectors = write(tmp_path / "vectors", grouped()[0][:4], [0, 4])
    with pytest.raises(ValueError, match="clusters = 5 must lie between 1 and the number of samples"):
        kmeans_large(vectors, 5, tmp_path / "clusters.npy", seed=0)
    assert not (tmp_path / "clusters.npy").exists()
