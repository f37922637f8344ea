"""Building blocks of ONNX graphs, and the arithmetic that goes around a network: resizing, pooling, unit length.

Only operators that mean the same in every opset since 8 are used, so that nodes can be put before and behind a network
of any of these opsets without converting it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from conr.models.backbones import Preprocessing

OLDEST_OPSET = 8
NETWORK = "network/"  # what the names of nodes of a frozen network begin with
BEFORE, BEHIND = "preprocessing", "pooling"  # what is put before it, and first behind it
TINY = 1e-12  # least length that a vector is divided by, as in torch.nn.functional.normalize


class Nodes:
    """Nodes and constants that belong together, to be put before or behind those of a graph.

    Args:
        graph: the one that they are for; names are new in it.
        name: what they do; their names begin with it.
    """

    def __init__(self, graph: onnx.GraphProto, name: str) -> None:
        self.prefix = f"{name}-{len(graph.node)}"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, values: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def scalar(self, value: float) -> str:
        """Add a float32 constant that broadcasts and return its name."""
        return self.constant(np.array([value], np.float32))

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return that output's name."""
        name = f"{self.prefix}/{operator}_{len(self.nodes)}"
        output = output or name
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], name, **attributes))
        return output

    def put_before(self, graph: onnx.GraphProto) -> None:
        """Insert the nodes in front of a graph's own."""
        own = list(graph.node)
        del graph.node[:]
        graph.node.extend([*self.nodes, *own])
        graph.initializer.extend(self.constants)

    def put_behind(self, graph: onnx.GraphProto) -> None:
        """Append the nodes to a graph's own."""
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.constants)


def preprocess(nodes: Nodes, images: str, size: int, card: Preprocessing, kind: int, output: str) -> None:
    """Turn (B, S, S, 3) uint8 images into what a network takes.

    Args:
        nodes: where to add.
        images: name of the images.
        size: S.
        card: what the network needs.
        kind: ONNX's number of the input's type; of uint8 inputs, pixels are rounded.
        output: name of the result.
    """
    pixels = nodes.add("Transpose", nodes.add("Cast", images, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    if size != card.size:
        matrix = resize_matrix(size, card.size, card.interpolation).astype(np.float32)
        rows = nodes.add("MatMul", nodes.constant(matrix), pixels)
        pixels = nodes.add("MatMul", rows, nodes.constant(matrix.T))
        if card.interpolation == "bicubic":  # it overshoots
            pixels = nodes.add("Max", pixels, nodes.scalar(0))
            pixels = nodes.add("Min", pixels, nodes.scalar(255))
    if card.channels == "bgr":
        pixels = nodes.add("Gather", pixels, nodes.constant(np.array([2, 1, 0])), axis=1)
    mean, std = (np.array(values, np.float64).reshape(1, 3, 1, 1) for values in (card.mean, card.std))
    pixels = nodes.add("Mul", pixels, nodes.constant((card.scale / std).astype(np.float32)))
    pixels = nodes.add("Add", pixels, nodes.constant((-mean / std).astype(np.float32)))
    if kind == TensorProto.UINT8:
        pixels = nodes.add("Floor", nodes.add("Add", pixels, nodes.scalar(0.5)))
    if card.layout == "nhwc":
        pixels = nodes.add("Transpose", pixels, perm=[0, 2, 3, 1])
    nodes.add("Cast", pixels, to=kind, output=output)


def pool(nodes: Nodes, values: str, rank: int, layout: str, output: str) -> None:
    """Turn a network's output into float32 features (B, F).

    Args:
        nodes: where to add.
        values: name of (B, F) features, (B, T, C) tokens or a feature map, of any float type.
        rank: number of its dimensions; of three, the mean over all tokens is taken; of four, that over the image.
        layout: whether a feature map is (B, C, H, W) or (B, H, W, C).
        output: name of the result.
    """
    if rank == 2:
        nodes.add("Cast", values, to=TensorProto.FLOAT, output=output)
        return
    values = nodes.add("Cast", values, to=TensorProto.FLOAT)
    if rank == 3:
        values = nodes.add("Transpose", values, perm=[0, 2, 1])
    elif layout == "nhwc":
        values = nodes.add("Transpose", values, perm=[0, 3, 1, 2])
    nodes.add("Flatten", nodes.add("GlobalAveragePool", values), axis=1, output=output)


def to_unit_length(nodes: Nodes, vectors: str, dimension: int, output: str) -> None:
    """Divide (B, D) vectors by their lengths; vectors of length 0 stay 0."""
    squares = nodes.add("MatMul", nodes.add("Mul", vectors, vectors), nodes.constant(np.ones((dimension, 1), "f4")))
    lengths = nodes.add("Max", nodes.add("Sqrt", squares), nodes.scalar(TINY))
    nodes.add("Div", vectors, lengths, output=output)


def resize_matrix(source: int, target: int, interpolation: str) -> NDArray[np.float64]:
    """The (target, source) matrix R with which R · X · Rᵀ is the resized image X, as Pillow's `resize` computes it.

    Each row holds the weights of a pixel, normalized, from a triangle ("bilinear") or Keys' cubic with a = −1/2
    ("bicubic"), which is as wide as a source pixel or, where the image becomes smaller, a target pixel (antialiasing).
    """
    width = max(source / target, 1.0)
    centers = (np.arange(target) + 0.5) * source / target
    distances = np.abs(np.arange(source) + 0.5 - centers[:, None]) / width
    weights = np.maximum(1 - distances, 0) if interpolation == "bilinear" else _cubic(distances)
    normalized: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalized


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def declare(name: str, kind: int, shape: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    """The declaration of an input or output of a graph; a shape of None is not said."""
    return onnx.helper.make_tensor_value_info(name, kind, shape)
