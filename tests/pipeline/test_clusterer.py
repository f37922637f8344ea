"""clusterer.onnx: cluster, confidence, novelty and embedding as conr computes them, and refused where they are not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_encoder import DIMENSION, images

from conr.clustering.votes import assign_by_neighbors
from conr.embedding import clusterer as graphs
from conr.embedding.clusterer import OUTPUTS, Memory, behind_embeddings, compose, opset_of, remember
from conr.embedding.session import INPUT, OUTPUT, open_session, properties
from conr.errors import UserError
from conr.evaluation.assignment import assign
from conr.pipeline import clusterer
from conr.pipeline.clusterer import KEY, Card, rename_in_clusterer, write_clusterer

METHODS = pytest.mark.parametrize(
    ("by_votes", "ballots"), [(False, False), (True, False), (True, True)], ids=["kmeans", "votes", "ballots"]
)


def unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def memory_of(embeddings: NDArray[np.float32], clusters: int, by_votes: bool, ballots: bool = False) -> Memory:
    """Clusters around the first embeddings; those of a graph are not the nearest centroids', nor those of ballots."""
    found = assign(embeddings, embeddings[:clusters]).clusters
    table = np.random.default_rng(0).uniform(0.2, 1, size=(len(embeddings), 2 * clusters + 2)).astype(np.float32)
    numbers = (found + 1) % clusters if by_votes else found
    return remember(embeddings, numbers, embeddings[:clusters], by_votes, ballots=table if ballots else None)


def run(model: onnx.ModelProto, embeddings: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(OUTPUTS, {"embeddings": embeddings}), strict=True))


def slow_novelty(stored: NDArray[np.float32], rows: NDArray[np.float32]) -> list[float]:
    """The formula, in float64 loops over Euclidean distances."""
    known = stored.astype(np.float64)

    def nearest(row: NDArray[np.float64], others: NDArray[np.float64]) -> float:
        return min((float(np.linalg.norm(row - other)) for other in others), default=0.0)

    own = [nearest(row, np.delete(known, number, 0)) for number, row in enumerate(known)]
    found = [nearest(row, known) for row in rows.astype(np.float64)]
    return [sum(distance < other for distance in own) / len(own) for other in found]


@given(
    count=st.integers(1, 60),
    clusters=st.integers(1, 7),
    how=st.sampled_from([(False, False), (True, False), (True, True)]),
    opset=st.sampled_from([11, 13, 18, 20]),
)
@settings(max_examples=40, deadline=None)
def test_the_graph_computes_what_conr_computes(count: int, clusters: int, how: tuple[bool, bool], opset: int) -> None:
    stored, new = unit(count), unit(20, seed=1)
    clusters = min(clusters, count)
    memory = memory_of(stored, clusters, *how)
    rows = np.concatenate([stored, new])
    found = run(behind_embeddings(memory, opset, 8), rows)
    if memory.by_votes:
        expected, confidence = assign_by_neighbors(rows, stored, memory.clusters, clusters, ballots=memory.ballots)
    else:
        assignment = assign(rows, memory.centroids)
        expected, confidence = assignment.clusters, 1 - assignment.boundary_ratio
    np.testing.assert_array_equal(found["cluster"], expected)
    np.testing.assert_array_equal(found["cluster"][:count], memory.clusters)
    np.testing.assert_allclose(found["confidence"], confidence, atol=1e-4)
    np.testing.assert_allclose(found["novelty"], memory.novelty(rows), atol=1e-6)
    np.testing.assert_array_equal(found["embedding"], rows)
    for name in ("confidence", "novelty"):
        assert found[name].min() >= 0
        assert found[name].max() <= 1


def test_novelty_is_the_rank_of_the_distance_to_the_nearest_stored_image() -> None:
    stored, new = unit(40), unit(30, seed=1)
    memory = memory_of(stored, 3, by_votes=False)
    np.testing.assert_allclose(memory.novelty(new), slow_novelty(stored, new), atol=1e-6)
    assert 0 < memory.novelty(new).mean() < 1


def test_what_was_seen_is_not_new_and_what_is_far_is() -> None:
    stored = np.concatenate([unit(20), unit(20)])  # each twice, so that float32 rounds the cosines of equal ones
    stored[:, 0] = 1
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    memory = memory_of(stored, 3, by_votes=True)
    assert not memory.novelty(stored).any()
    far = np.zeros((1, DIMENSION), dtype=np.float32)
    far[0, 0] = -1
    assert memory.novelty(far) == 1


def test_of_many_images_a_sample_is_stored_and_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "STORED", 30)
    monkeypatch.setattr(graphs, "RANKED", 8)
    embeddings, clusters = unit(100), np.arange(100) % 4
    memory = remember(embeddings, clusters, embeddings[:4], by_votes=True)
    assert memory.stored.shape == (30, DIMENSION)
    assert memory.ranked.shape == (8,)
    rows = {row.tobytes(): number for number, row in enumerate(embeddings)}
    numbers = [rows[row.tobytes()] for row in memory.stored]
    assert sorted(set(numbers)) == numbers
    np.testing.assert_array_equal(memory.clusters, clusters[numbers])


@METHODS
def test_the_file_takes_images_and_knows_the_clusters_of_those_that_were_clustered(
    encoder: Path, tmp_path: Path, by_votes: bool, ballots: bool
) -> None:
    pixels, path = images(60, 8), tmp_path / "clusterer.onnx"
    embeddings = open_session(encoder, "cpu").run([OUTPUT], {INPUT: pixels})[0]
    memory = memory_of(embeddings, 4, by_votes, ballots)
    write_clusterer(path, encoder, memory, "an identity", {3: "red shoes"})
    session = open_session(path, "cpu")
    found = dict(zip(OUTPUTS, session.run(OUTPUTS, {INPUT: pixels}), strict=True))
    np.testing.assert_array_equal(found["cluster"], memory.clusters)
    np.testing.assert_allclose(found["embedding"], embeddings, atol=1e-6)
    assert not found["novelty"].any()
    assert {output.name: output.type for output in session.get_outputs()} == {
        "cluster": "tensor(int64)",
        "confidence": "tensor(float)",
        "novelty": "tensor(float)",
        "embedding": "tensor(float)",
    }
    assert properties(session) == properties(open_session(encoder, "cpu"))
    card = Card(
        count=4,
        method="graph" if by_votes else "kmeans",
        clustering="an identity",
        stored=60,
        names={3: "red shoes"},
    )
    assert card_of(path) == card
    assert [file.name for file in tmp_path.iterdir()] == ["clusterer.onnx"]


def card_of(path: Path) -> Card:
    facts = open_session(path, "cpu").get_modelmeta().custom_metadata_map
    return Card.model_validate_json(facts[KEY])


def test_names_are_replaced_and_all_else_stays(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "clusterer.onnx"
    memory = memory_of(unit(20), 3, by_votes=False)
    write_clusterer(path, encoder, memory, "an identity", {0: "owls", 1: "cats"})
    before = onnx.load(path)
    rename_in_clusterer(path, {1: "kittens “K”"})
    after = onnx.load(path)
    assert after.graph == before.graph
    assert card_of(path).names == {1: "kittens “K”"}
    assert properties(open_session(path, "cpu")).image_size == 8


@pytest.mark.parametrize(
    ("constant", "how"),
    [
        ("stored_clusters", (True, False)),
        ("stored", (True, False)),
        ("minus_two_centroids", (False, False)),
        ("ranked", (False, False)),
        ("ranked", (True, False)),
        ("ballots", (True, True)),
        ("relayed", (True, True)),
        ("reach", (True, True)),
        ("linking", (True, True)),
    ],
)
def test_a_file_that_computes_something_else_is_refused(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, how: tuple[bool, bool]
) -> None:
    constants = graphs._constants

    def damaged(memory: Memory) -> dict[str, NDArray[Any]]:
        right = constants(memory)
        return {**right, constant: right[constant][::-1] if constant == "stored_clusters" else -right[constant]}

    monkeypatch.setattr(graphs, "_constants", damaged)
    with pytest.raises(
        UserError, match=r"^clusterer\.onnx does not assign as conr does: its \w+ differ for \d+ images"
    ):
        write_clusterer(tmp_path / "clusterer.onnx", encoder, memory_of(unit(50), 4, *how), "an identity")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_embeds_otherwise_than_the_encoder_is_refused(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: onnx.ModelProto, memory: Memory) -> onnx.ModelProto:
        weights = max(model.graph.initializer, key=lambda tensor: tensor.ByteSize())
        values = onnx.numpy_helper.to_array(weights)
        weights.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), weights.name))
        return compose(model, memory)

    monkeypatch.setattr(clusterer, "compose", other)
    with pytest.raises(UserError, match=r"^clusterer\.onnx does not assign as conr does: its embeddings differ"):
        write_clusterer(tmp_path / "clusterer.onnx", encoder, memory_of(unit(20), 3, False), "an identity")
    assert list(tmp_path.iterdir()) == []


def plain_encoder(opset: int, operator: str = "Flatten") -> onnx.ModelProto:
    """Embeddings of 2 × 2 images: their twelve values."""
    return onnx.parser.parse_model(f"""
        <ir_version: 4, opset_import: ["": {opset}], metadata_props: ["conr": "{{}}"]>
        encoder (uint8[batch, 2, 2, 3] images) => (float[batch, 12] embeddings) {{
            numbers = Cast <to = 1> (images)
            embeddings = {operator} <axis = 1> (numbers)
        }}
    """)


def test_an_encoder_of_an_old_opset_is_converted() -> None:
    model = compose(plain_encoder(9), memory_of(unit(5, dimension=12), 2, False))
    assert opset_of(model) == 11
    assert {entry.key: entry.value for entry in model.metadata_props} == {"conr": "{}"}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(["cluster"], {INPUT: images(3, 2)})[0].shape == (3,)


def test_an_encoder_that_cannot_be_converted_is_named() -> None:
    with pytest.raises(UserError, match=r"^the encoder has opset 9 and cannot be converted to 11"):
        compose(plain_encoder(9, "NoSuchOperator"), memory_of(unit(5, dimension=12), 2, False))
