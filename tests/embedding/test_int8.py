"""The int8 encoder: which of its parts are quantized, how near it comes to float32, and when it is refused."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from recorder import Recorder

from conr.embedding.export import export
from conr.embedding.int8 import quantize
from conr.embedding.session import INPUT, OUTPUT, PROVIDERS, Properties, infer, open_session, properties
from conr.errors import UserError
from conr.models.heads import deep_mlp, mlp
from conr.models.resnet import Encoder
from conr.models.siamese import Network

SIZE, WIDTH, DIMENSION = 8, 8, 16
FACTS = Properties(image_size=SIZE, fit="crop")


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise on a color of each image's own."""
    generator = np.random.default_rng(seed)
    colors = generator.uniform(40, 215, (count, 1, 1, 3))
    pixels: NDArray[np.uint8] = (colors + generator.normal(0, 20, (count, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
    return pixels


def trained(head: type = mlp) -> Network:
    """A small network, trained to distinguish the colors."""
    torch.manual_seed(0)
    network = Network(Encoder("resnet18", WIDTH, "cifar"), head(8 * WIDTH, 32, DIMENSION)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(30):
        pixels = torch.from_numpy(images(64, 100 + step)).permute(0, 3, 1, 2).float() / 255
        loss = (network(pixels)[:, :3] - 10 * (pixels.mean((2, 3)) - 0.5)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def exported(network: Network, folder: Path) -> Path:
    export(network, SIZE, folder / "float32.onnx", FACTS)
    return folder / "float32.onnx"


def embeddings(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate(list(infer(open_session(path, "cpu"), [pixels])))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """The float32 file, the int8 file, and the similarity that was found."""
    folder = tmp_path_factory.mktemp("pair")
    original = exported(trained(), folder)
    similarity = quantize(original, images(300), folder / "int8.onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["float32.onnx", "int8.onnx"]
    return original, folder / "int8.onnx", similarity


def test_embeddings_are_close_to_those_of_float32_on_new_images(pair: tuple[Path, Path, float]) -> None:
    original, int8, similarity = pair
    pixels = images(200, seed=1)
    expected, found = embeddings(original, pixels), embeddings(int8, pixels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = (expected * found).sum(axis=1)
    assert cosines.mean() > 0.999
    assert similarity == pytest.approx(cosines.mean(), abs=1e-3)
    assert np.abs(expected - found).max() > 1e-4, "it would be no int8 model"
    assert np.mean((expected @ expected.T) < 0.9) > 0.3, "the features must differ for the cosine to say anything"


def test_every_convolution_has_int8_weights_by_channel_and_uint8_activations(pair: tuple[Path, Path, float]) -> None:
    graph = onnx.load(pair[1]).graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for convolution in convolutions:
        activation, weight = (made_by[name] for name in convolution.input[:2])
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert constants[activation.input[2]].dtype == np.uint8
        assert constants[activation.input[2]].shape == ()
        values, scales = (constants[name] for name in weight.input[:2])
        assert values.dtype == np.int8
        assert scales.shape == values.shape[:1]
        assert np.abs(values.reshape(len(values), -1).astype(int)).max(axis=1).tolist() == [127] * len(values)
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"], "folded into the convolutions"


def test_the_last_product_and_the_normalization_stay_float32(pair: tuple[Path, Path, float]) -> None:
    graph = onnx.load(pair[1]).graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    first, last = [node for node in graph.node if node.op_type == "Gemm"]
    assert made_by[first.input[1]].op_type == "DequantizeLinear"
    assert [constants[name] for name in last.input[1:]] == [TensorProto.FLOAT, TensorProto.FLOAT]
    behind = list(graph.node)[list(graph.node).index(last) :]
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in behind}


def test_onnxruntime_computes_it_in_integers(pair: tuple[Path, Path, float], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(pair[1], options, providers=[PROVIDERS["cpu"]])
    computed = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert (computed.count("QLinearConv"), computed.count("QLinearAdd")) == (20, 8)
    assert not {"Conv", "FusedConv"} & set(computed)


def test_properties_are_those_of_the_original_in_int8(pair: tuple[Path, Path, float]) -> None:
    original, int8, _ = pair
    assert properties(open_session(original, "cpu")) == FACTS
    assert properties(open_session(int8, "cpu")) == FACTS.model_copy(update={"precision": "int8"})


def test_it_takes_and_gives_what_the_original_does(pair: tuple[Path, Path, float]) -> None:
    interfaces = []
    for path in pair[:2]:
        session = open_session(path, "cpu")
        interfaces.append(
            [(end.name, end.type, end.shape[1:]) for end in (*session.get_inputs(), *session.get_outputs())]
        )
    assert interfaces[0] == interfaces[1]
    session, pixels = open_session(pair[1], "cpu"), images(9)
    at_once = session.run([OUTPUT], {INPUT: pixels})[0]
    one_by_one = np.concatenate([session.run([OUTPUT], {INPUT: pixels[n : n + 1]})[0] for n in range(9)])
    np.testing.assert_allclose(at_once, one_by_one, atol=1e-5)


def test_the_same_images_give_the_same_file(pair: tuple[Path, Path, float], tmp_path: Path) -> None:
    quantize(pair[0], images(300), tmp_path / "again.onnx")
    pixels = images(20, seed=2)
    np.testing.assert_array_equal(embeddings(tmp_path / "again.onnx", pixels), embeddings(pair[1], pixels))


def test_a_head_without_biases_is_quantized_up_to_its_last_product(tmp_path: Path) -> None:
    """That of SimSiam and Barlow Twins: three products."""
    assert quantize(exported(trained(deep_mlp), tmp_path), images(300), tmp_path / "int8.onnx") > 0.999
    graph = onnx.load(tmp_path / "int8.onnx").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in {"Gemm", "MatMul"}]
    assert [made_by.get(node.input[1]) for node in products] == ["DequantizeLinear", "DequantizeLinear", None]


def test_few_images_are_enough_to_calibrate_on(pair: tuple[Path, Path, float], tmp_path: Path) -> None:
    recorder = Recorder()
    assert quantize(pair[0], images(16), tmp_path / "int8.onnx", recorder) > 0.99
    assert recorder.tasks == [("calibrate", 8, 0)]  # the other half is compared
    assert sum(amount for amount, _ in recorder.steps) == 8


def test_an_encoder_that_eight_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    """One channel, a million times the others, takes all 256 levels; nothing that is read later depends on it."""
    network = trained()
    encoder = network.encoder
    with torch.no_grad():
        encoder.bn1.weight[0] *= 1e6
        encoder.bn1.bias[0] *= 1e6
        readers = [block.conv1 for block in encoder.layer1]  # type: ignore[union-attr]
        readers += [encoder.layer2[0].conv1, encoder.layer2[0].downsample[0]]  # type: ignore[index, union-attr]
        for convolution in readers:
            convolution.weight[:, 0] = 0
    original = exported(network, tmp_path)
    with pytest.raises(UserError, match=r" 150 images .* 0\.\d+ .*extract\.precision = float32"):
        quantize(original, images(300), tmp_path / "int8.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["float32.onnx"]


def test_an_int8_file_is_for_the_cpu(pair: tuple[Path, Path, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU's provider instead of CUDA's, which is missing."""
    monkeypatch.setitem(PROVIDERS, "cuda", PROVIDERS["cpu"])
    with pytest.raises(UserError, match=r"int8\.onnx .*--device cpu"):
        open_session(pair[1], "cuda")
    assert open_session(pair[1], "auto").get_providers() == [PROVIDERS["cpu"]]
    assert open_session(pair[0], "cuda").get_providers() == [PROVIDERS["cpu"]]
