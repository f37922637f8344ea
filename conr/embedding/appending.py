"""Layers appended to an encoder's ONNX file: a projection behind a frozen network, trained heads behind that."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from scipy.special import softmax

from conr.embedding.nodes import Nodes, declare, to_unit_length
from conr.embedding.projection import Projection
from conr.embedding.session import INPUT, OUTPUT, Properties, open_session, properties
from conr.errors import UserError
from conr.files import atomic_file

CHECKED_BATCH_SIZES = (1, 2)
INHERITED = ("backbone", "preprocessing", "precision")  # of an encoder, by what is made of it
TOLERANCE = 1e-4  # largest difference of an element of a unit vector

Reference = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def append_projection(encoder: Path, projection: Projection, path: Path, facts: Properties) -> None:
    """Write an encoder whose output are unit vectors, from one whose output are the features of a frozen network.

    Args:
        encoder: the file that `conr.embedding.frozen.write_frozen_encoder` wrote.
        projection: from features to unit vectors.
        path: the file to write: uint8 images → `OUTPUT`, (B, D) float32.
        facts: image size and fit to store in it; backbone, preprocessing and precision are those of the encoder.

    Raises:
        UserError: the encoder is missing or damaged, or the file computes something else; nothing is left under `path`.
    """

    def build(nodes: Nodes, features: str, dimension: int) -> None:
        if projection.components.shape[0] != dimension:
            raise ValueError(
                f"the projection is of {projection.components.shape[0]} features, {encoder} has {dimension}"
            )
        centered = nodes.add("Sub", features, nodes.constant(projection.mean))
        to_unit_length(nodes, centered, dimension, f"{nodes.prefix}/unit")
        projected = nodes.add("MatMul", f"{nodes.prefix}/unit", nodes.constant(projection.components))
        to_unit_length(nodes, projected, projection.components.shape[1], OUTPUT)

    _append(encoder, "projection", build, projection.components.shape[1], path, facts, projection.apply)


def append_heads(
    encoder: Path, prototypes: NDArray[np.float32], temperature: float, path: Path, facts: Properties
) -> None:
    """Write an encoder with cluster heads behind its unit vectors, as `conr.refinement.heads.Head` computes them.

    The output is the square roots of each head's cluster probabilities, side by side: unit vectors of length L · K.

    Args:
        encoder: the file that `append_projection` wrote.
        prototypes: (L, D, K) float32, of unit length along D: of L heads for K clusters.
        temperature: of the softmax of cosines.
        path, facts: as for `append_projection`.

    Raises:
        UserError: as for `append_projection`.
    """
    heads, inputs, clusters = prototypes.shape
    flat = prototypes.transpose(1, 0, 2).reshape(inputs, heads * clusters)

    def reference(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        cosines = (vectors @ flat.astype(np.float64)).reshape(-1, heads, clusters)
        shares = softmax(cosines / temperature, axis=2)
        rows: NDArray[np.float32] = np.sqrt(shares / heads).reshape(len(vectors), -1).astype(np.float32)
        return rows

    def build(nodes: Nodes, vectors: str, _: int) -> None:
        cosines = nodes.add("MatMul", vectors, nodes.constant(flat / np.float32(temperature)))
        of_heads = nodes.add("Reshape", cosines, nodes.constant(np.array([-1, heads, clusters])))
        shares = nodes.add("Softmax", of_heads, axis=2)
        roots = nodes.add("Sqrt", nodes.add("Mul", shares, nodes.scalar(1 / heads)))
        nodes.add("Reshape", roots, nodes.constant(np.array([-1, heads * clusters])), output=OUTPUT)

    _append(encoder, "heads", build, heads * clusters, path, facts, reference)


def _append(
    encoder: Path,
    name: str,
    build: Callable[[Nodes, str, int], None],
    dimension: int,
    path: Path,
    facts: Properties,
    reference: Reference,
) -> None:
    session = open_session(encoder, "cpu")
    stored, before = properties(session), session.get_outputs()[0]
    model = onnx.load(encoder)
    graph = model.graph
    last = _renamed_output(graph, before.name)
    nodes = Nodes(graph, name)
    build(nodes, last, before.shape[1])
    nodes.put_behind(graph)
    del graph.output[:]
    graph.output.append(declare(OUTPUT, TensorProto.FLOAT, ("batch", dimension)))
    facts = facts.model_copy(update={name: getattr(stored, name) for name in INHERITED})
    onnx.helper.set_model_props(model, {"conr": facts.model_dump_json()})
    with atomic_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        _check(encoder, temporary, reference, path.name)


def _renamed_output(graph: onnx.GraphProto, name: str) -> str:
    """Rename a graph's output, so that its name is free for another; returns the new name."""
    renamed = f"before-{len(graph.node)}/{name}"
    for node in graph.node:
        for names in (node.input, node.output):
            for position, value in enumerate(names):
                if value == name:
                    names[position] = renamed
    return renamed


def _check(encoder: Path, written: Path, reference: Reference, name: str) -> None:
    """Compare what was appended with its reference, on random images."""
    first, second = open_session(encoder, "cpu"), open_session(written, "cpu")
    size = first.get_inputs()[0].shape[1]
    for batch in CHECKED_BATCH_SIZES:
        images = np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        expected = reference(first.run(None, {INPUT: images})[0])
        found = second.run([OUTPUT], {INPUT: images})[0]
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:
            raise UserError(
                f"{name} does not compute what its parts do: for {batch} images they differ by {difference:.2g} "
                f"(accepted: {TOLERANCE:g}). It is refused; another version of onnxruntime may compute it correctly"
            )
