"""The int8 form of a frozen network: its first convolutions and what conr puts around it stay float32."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from conr.embedding.appending import append_projection
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.int8 import FIRST_CONVOLUTIONS, quantize
from conr.embedding.projection import fit_projection
from conr.embedding.session import Properties, infer, open_session, properties
from conr.models.backbones import Preprocessing, parse_backbone

CONVOLUTIONS, CHANNELS, SIZE = FIRST_CONVOLUTIONS + 2, 16, 8


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise on a color of each image's own."""
    generator = np.random.default_rng(seed)
    colors = generator.uniform(40, 215, (count, 1, 1, 3))
    pixels: NDArray[np.uint8] = (colors + generator.normal(0, 20, (count, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
    return pixels


def write_convolutions(path: Path) -> None:
    """A chain of convolutions whose nodes have no names, as some exporters write them."""
    generator, nodes, constants = np.random.default_rng(0), [], []
    for number in range(CONVOLUTIONS):
        inputs = CHANNELS if number else 3
        filters = generator.normal(scale=(2 / (9 * inputs)) ** 0.5, size=(CHANNELS, inputs, 3, 3)).astype(np.float32)
        constants.append(numpy_helper.from_array(filters, f"filters{number}"))
        source = f"x{number}" if number else "x"
        nodes.append(helper.make_node("Conv", [source, f"filters{number}"], [f"sums{number}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"sums{number}"], [f"x{number + 1}"]))
    shape = ["batch", 3, 10, 10]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{CONVOLUTIONS}", TensorProto.FLOAT, None)],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    path.with_suffix(".json").write_text(Preprocessing(size=10, interpolation="bicubic").model_dump_json())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """The float32 file, the int8 file, and the similarity that was found."""
    folder = tmp_path_factory.mktemp("frozen")
    write_convolutions(folder / "chain.onnx")
    write_frozen_encoder(parse_backbone(f"onnx:{folder}/chain.onnx"), SIZE, folder / "features.onnx")
    features = np.concatenate(list(infer(open_session(folder / "features.onnx", "cpu"), [images(300)])))
    facts = Properties(image_size=SIZE, fit="crop")
    append_projection(folder / "features.onnx", fit_projection(features, 4), folder / "float32.onnx", facts)
    similarity = quantize(folder / "float32.onnx", images(300), folder / "int8.onnx")
    return folder / "float32.onnx", folder / "int8.onnx", similarity


def test_embeddings_are_close_to_those_of_float32_on_new_images(pair: tuple[Path, Path, float]) -> None:
    pixels = images(100, seed=1)
    expected, found = (np.concatenate(list(infer(open_session(path, "cpu"), [pixels]))) for path in pair[:2])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = (expected * found).sum(axis=1)
    assert cosines.mean() > 0.99
    assert pair[2] == pytest.approx(cosines.mean(), abs=5e-3)
    assert np.abs(expected - found).max() > 1e-4, "it would be no int8 model"
    before, after = (properties(open_session(path, "cpu")) for path in pair[:2])
    assert after == before.model_copy(update={"precision": "int8"})


def test_only_the_convolutions_after_the_first_ones_are_quantized(pair: tuple[Path, Path, float]) -> None:
    graph = onnx.load(pair[1]).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantized = [made_by.get(node.input[1]) == "DequantizeLinear" for node in convolutions]
    assert quantized == [number >= FIRST_CONVOLUTIONS for number in range(CONVOLUTIONS)]
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == 5, "two of the resizing, one of the projection, and one for each length"
    assert "DequantizeLinear" not in {made_by.get(name) for node in products for name in node.input}


def test_the_mean_that_is_subtracted_is_that_of_the_int8_features(
    pair: tuple[Path, Path, float], tmp_path: Path
) -> None:
    original, model = onnx.load(pair[0]), onnx.load(pair[1])
    centering = next(node for node in model.graph.node if node.op_type == "Sub")
    before, after = (constant(graph, centering.input[1]) for graph in (original.graph, model.graph))
    features = [mean_of(part, centering.input[0], tmp_path) for part in (original, model)]
    np.testing.assert_allclose(after - before, features[1] - features[0], atol=0.02 * np.abs(features[0]).max())
    assert np.linalg.norm((features[1] - after) - (features[0] - before)) < np.linalg.norm(features[1] - features[0])


def constant(graph: onnx.GraphProto, name: str) -> NDArray[np.float32]:
    return numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))


def mean_of(model: onnx.ModelProto, value: str, folder: Path) -> NDArray[np.float32]:
    """Of new images."""
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", CHANNELS]))
    onnx.save(model, folder / "features.onnx")
    found = list(infer(open_session(folder / "features.onnx", "cpu"), [images(300, seed=2)]))
    mean: NDArray[np.float32] = np.concatenate(found).mean(axis=0)
    return mean
