"""Made-up ONNX networks of a few nodes, as others could bring them, and what they compute in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE = 5, 6


def weights(seed: int = 0) -> NDArray[np.float32]:
    """(CHANNELS, 3): of a 1 × 1 convolution."""
    return np.random.default_rng(seed).normal(size=(CHANNELS, 3)).astype(np.float32)


def write_network(
    path: Path,
    *,
    size: int | str = SIZE,
    batch: int | str = "batch",
    layout: str = "nchw",
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    rank: int = 4,
    channels: int = 3,
    metadata: dict[str, str] | None = None,
    **changes: Any,
) -> Path:
    """Write relu(convolution) → feature map, tokens or features; outputs are named map, tokens and features.

    Args:
        path: the file.
        size, batch, channels, layout, kind: of the input "x".
        opset: of the file.
        rank: how many dimensions the last output has: 4, 3 or 2.
        metadata: of the file.
        changes: arguments of `onnx.save`.
    """
    number = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    filters = np.zeros((CHANNELS, channels, 1, 1), number)
    filters[:, :3, 0, 0] = weights()
    shape = [batch, channels, size, size] if layout == "nchw" else [batch, size, size, channels]
    source, nodes = "x", []
    if kind == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [source], ["number"], to=TensorProto.FLOAT))
        source = "number"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [source], ["first"], perm=[0, 3, 1, 2]))
        source = "first"
    nodes += [
        helper.make_node("Conv", [source, "filters"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["rectified"]),
    ]
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", ["rectified"], ["map"], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("Identity", ["rectified"], ["map"]))
    kind_out = TensorProto.FLOAT if kind == TensorProto.UINT8 else kind
    outputs = [helper.make_tensor_value_info("map", kind_out, None)]
    constants = [numpy_helper.from_array(filters, "filters")]
    if rank <= 3:
        constants.append(numpy_helper.from_array(np.array([0, CHANNELS, -1]), "flat"))
        nodes.append(helper.make_node("Reshape", ["rectified", "flat"], ["rows"]))
        nodes.append(helper.make_node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]))
        outputs.append(helper.make_tensor_value_info("tokens", kind_out, None))
    if rank == 2:
        nodes.append(helper.make_node("GlobalAveragePool", ["rectified"], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
        outputs.append(helper.make_tensor_value_info("features", kind_out, None))
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, **changes)
    return path
