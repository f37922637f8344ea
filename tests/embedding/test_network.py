"""ONNX files as others make them: what is opened as an image network, and what is refused with a reason."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_encoder import images
from small_networks_onnx import CHANNELS, SIZE, weights, write_network

from conr.embedding.frozen import pooled, prepare, write_frozen_encoder
from conr.embedding.network import ImageNetwork, open_network
from conr.embedding.session import infer, open_session
from conr.errors import Note, UserError
from conr.models.backbones import Preprocessing, parse_backbone

CARD = Preprocessing(size=SIZE)
INSIDE = {"preprocessing": CARD.model_dump_json()}
EDIT = Callable[[onnx.ModelProto], object]


def edited(path: Path, change: EDIT, **arguments: Any) -> Path:
    """A small network with a change to its model."""
    model = onnx.load(write_network(path, metadata=INSIDE, **arguments))
    change(model)
    onnx.save(model, path)
    return path


def append(model: onnx.ModelProto, node: onnx.NodeProto, kind: int = TensorProto.FLOAT) -> None:
    """Add a node whose output is one of the file's."""
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], kind, None))


def features_of(network: ImageNetwork, count: int) -> np.ndarray[Any, Any]:
    prepared = prepare(images(count, SIZE), network.preprocessing)
    return pooled(network.run(prepared), network.preprocessing.layout, network.name)


def refusal(path: Path, output: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        open_network(path, output)
    said = str(error.value)
    assert said.startswith(f"network.backbone: {path}")
    assert "\n" not in said
    return said


def test_a_card_beside_the_file_goes_before_one_inside(tmp_path: Path) -> None:
    path = write_network(tmp_path / "a.onnx", size="side", metadata=INSIDE)
    assert open_network(path).preprocessing == CARD
    other = Preprocessing(size=9, channels="bgr")
    path.with_suffix(".json").write_text(other.model_dump_json())
    assert open_network(path).preprocessing == other


@pytest.mark.parametrize(
    ("arguments", "expected", "said"),
    [
        ({"size": 6}, Preprocessing(size=6), "RGB, 6 pixels, ImageNet's mean and std"),
        ({"size": "side"}, Preprocessing(size=224), "RGB, 224 pixels, ImageNet's mean and std"),
        ({"layout": "nhwc"}, Preprocessing(size=6, layout="nhwc"), "RGB, 6 pixels, ImageNet's mean and std"),
        (
            {"layout": "nhwc", "kind": TensorProto.UINT8},
            Preprocessing(size=6, layout="nhwc", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0),
            "RGB, 6 pixels, pixels from 0 to 255",
        ),
    ],
    ids=str,
)
def test_without_a_card_a_note_says_what_is_assumed(
    tmp_path: Path, arguments: dict[str, Any], expected: Preprocessing, said: str
) -> None:
    with pytest.warns(Note, match=f"assumed: {said}. If that is wrong, write a preprocessing card beside it"):
        assert open_network(write_network(tmp_path / "a.onnx", **arguments)).preprocessing == expected


@pytest.mark.parametrize("output", ["map", "tokens", "features", "sums", None])
def test_any_value_in_the_file_can_be_the_output(tmp_path: Path, output: str | None) -> None:
    network = open_network(write_network(tmp_path / "a.onnx", rank=2, metadata=INSIDE), output)
    assert network.output == (output or "features")
    pixels = prepare(images(2, SIZE), CARD)
    sums = np.einsum("fc,bchw->bfhw", weights().astype(np.float64), pixels)
    expected = (sums if output == "sums" else np.maximum(sums, 0)).mean(axis=(2, 3))
    np.testing.assert_allclose(features_of(network, 2), expected, atol=1e-5)


def test_what_the_output_does_not_need_is_removed(tmp_path: Path) -> None:
    whole = open_network(write_network(tmp_path / "a.onnx", rank=2, metadata=INSIDE))
    part = open_network(tmp_path / "a.onnx", "map")
    assert [node.op_type for node in part.model.graph.node] == ["Conv", "Relu", "Identity"]
    assert [tensor.name for tensor in part.model.graph.initializer] == ["filters"]
    assert [node.op_type for node in whole.model.graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]


@pytest.mark.parametrize("fixed", [1, 2, 4])
def test_a_fixed_batch_size_is_lifted_where_the_network_does_not_depend_on_it(tmp_path: Path, fixed: int) -> None:
    path = write_network(tmp_path / "a.onnx", batch=fixed, rank=2, metadata=INSIDE)
    network = open_network(path)
    assert network.fixed_batch == fixed
    for count in (1, 3, 5):
        np.testing.assert_array_equal(features_of(network, count)[:1], features_of(network, 1))
        assert features_of(network, count).shape == (count, CHANNELS)
    write_frozen_encoder(parse_backbone(f"onnx:{path}"), 8, tmp_path / "frozen.onnx")
    rows = list(infer(open_session(tmp_path / "frozen.onnx", "cpu"), [images(7, 8)]))
    assert sum(map(len, rows)) == 7


def test_a_network_that_works_for_one_batch_size_only_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    def reshape_two(model: onnx.ModelProto) -> None:
        shape = onnx.numpy_helper.from_array(np.array([2, CHANNELS, SIZE, SIZE]), "two")
        model.graph.initializer.append(shape)
        append(model, helper.make_node("Reshape", ["map", "two"], ["fixed"]))

    path = edited(tmp_path / "a.onnx", reshape_two, batch=2)
    with pytest.raises(
        UserError, match=r"on 1 images, it does not run .*; its batch size is fixed to 2: export it wit"
    ):
        write_frozen_encoder(parse_backbone(f"onnx:{path}"), 8, tmp_path / "frozen.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    def normalize_by_the_batch(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("ReduceMean", ["map"], ["mean"], axes=[0, 2, 3]))
        model.graph.node.append(helper.make_node("Sub", ["map", "mean"], ["normalized"]))
        append(model, helper.make_node("Relu", ["normalized"], ["result"]))

    path = edited(tmp_path / "a.onnx", normalize_by_the_batch)
    with pytest.raises(UserError, match=r"it differs from the network by .*; export the network in evaluation mode"):
        write_frozen_encoder(parse_backbone(f"onnx:{path}"), 8, tmp_path / "frozen.onnx")


@pytest.mark.parametrize("name", ["a.onnx.data", "a.onnx_data"])
def test_weights_in_a_file_beside_it_are_read_and_copied(tmp_path: Path, name: str) -> None:
    arguments: dict[str, Any] = {"save_as_external_data": True, "location": name, "size_threshold": 0}
    path = write_network(tmp_path / "a.onnx", rank=2, metadata=INSIDE, **arguments)
    assert (tmp_path / name).is_file()
    write_frozen_encoder(parse_backbone(f"onnx:{path}"), SIZE, tmp_path / "frozen.onnx")
    (tmp_path / name).unlink()
    path.unlink()
    rows = np.concatenate(list(infer(open_session(tmp_path / "frozen.onnx", "cpu"), [images(3, SIZE)])))
    write_network(tmp_path / "b.onnx", rank=2, metadata=INSIDE)
    np.testing.assert_allclose(rows, features_of(open_network(tmp_path / "b.onnx"), 3), atol=1e-5)


def test_missing_weights_beside_it_are_named(tmp_path: Path) -> None:
    path = write_network(tmp_path / "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=0)
    (tmp_path / "a.onnx.data").unlink()
    said = refusal(path)
    assert "is not a whole ONNX file" in said
    assert "a.onnx.data" in said


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.UINT8], ids=["float16", "uint8"])
def test_other_number_formats_of_the_input_are_accepted(tmp_path: Path, kind: int) -> None:
    card = Preprocessing(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)
    network = write_network(tmp_path / "a.onnx", kind=kind, rank=2, metadata={"preprocessing": card.model_dump_json()})
    write_frozen_encoder(parse_backbone(f"onnx:{network}"), SIZE, tmp_path / "frozen.onnx")
    pixels = images(3, SIZE)
    found = np.concatenate(list(infer(open_session(tmp_path / "frozen.onnx", "cpu"), [pixels])))
    sums = np.einsum("fc,bhwc->bhwf", weights().astype(np.float64), pixels.astype(np.float64))
    expected = np.maximum(sums, 0).mean(axis=(1, 2))
    assert found.dtype == np.float32
    tolerance = 1e-2 if kind == TensorProto.FLOAT16 else 1e-5
    np.testing.assert_allclose(found, expected, atol=tolerance * expected.max())


def input_of(kind: int, *shape: int | str) -> EDIT:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, shape))

    return change


def with_second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def with_classes(model: onnx.ModelProto) -> None:
    append(model, helper.make_node("ArgMax", ["map"], ["class"], axis=1), TensorProto.INT64)


FLOAT = TensorProto.FLOAT
REFUSED: dict[str, tuple[EDIT, str]] = {
    "two inputs": (with_second_input, "has 2 inputs (x, mask); it must have one, a batch of images"),
    "float64": (input_of(TensorProto.DOUBLE, "batch", 3, 6, 6), "takes double; it must take images as float32"),
    "integers": (input_of(TensorProto.INT64, "batch", 3, 6, 6), "takes int64; it must take images as float32"),
    "vectors": (input_of(FLOAT, "batch", 12), "takes an input of 2 dimensions; it must take images"),
    "one channel": (input_of(FLOAT, "batch", 1, 6, 6), "takes 1 channels in layout nchw; images have 3"),
    "no square": (input_of(FLOAT, "batch", 3, 5, 7), "takes images of 5 × 7 pixels; they must be square"),
    "another size": (input_of(FLOAT, "batch", 3, 8, 8), "of 8 pixels, its preprocessing card says 6; correct it"),
    "classes": (with_classes, "output class is int64, not float; its outputs are map, class"),
    "no nodes": (lambda model: model.graph.ClearField("node"), "is not an ONNX network: it holds no graph"),
    "an old opset": (
        lambda model: model.opset_import[0].CopyFrom(helper.make_opsetid("", 7)),
        "is written in ONNX opset 7; export it in opset 8 or later",
    ),
    "a damaged card": (
        lambda model: helper.set_model_props(model, {"preprocessing": '{"size": 0}'}),
        "its metadata preprocessing is damaged",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_no_image_networks_are_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    assert message in refusal(edited(tmp_path / "a.onnx", change))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write_network(tmp_path / "a.onnx", metadata=INSIDE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert re.search("is not a whole ONNX file|is not an ONNX network|opset", refusal(path))


def test_a_missing_file_and_a_missing_output_are_named(tmp_path: Path) -> None:
    assert "does not exist; name an ONNX file" in refusal(tmp_path / "a.onnx")
    write_network(tmp_path / "a.onnx", rank=2, metadata=INSIDE)
    assert "has no output pooler; its outputs are map, tokens, features" in refusal(tmp_path / "a.onnx", "pooler")


def test_a_file_of_more_than_two_gigabytes_is_refused(tmp_path: Path) -> None:
    path = write_network(tmp_path / "a.onnx", metadata=INSIDE)
    with Path(f"{path}.data").open("wb") as file:
        file.truncate(2**31)
    assert "holds more than 2 GiB, which one ONNX file cannot" in refusal(path)


def test_an_output_that_is_no_feature_vector_is_refused(tmp_path: Path) -> None:
    def reduce(model: onnx.ModelProto) -> None:
        append(model, helper.make_node("ReduceMean", ["features"], ["one"], axes=[1], keepdims=1))
        append(model, helper.make_node("ReduceMean", ["features"], ["vector"], axes=[1], keepdims=0))

    path = edited(tmp_path / "a.onnx", reduce, rank=2)
    with pytest.raises(UserError, match=r"output one has 1 features \(2 to 8,192 are accepted\); name another output"):
        write_frozen_encoder(parse_backbone(f"onnx:{path}#one"), SIZE, tmp_path / "frozen.onnx")
    with pytest.raises(UserError, match=r"its output has the shape \(3,\); .* is accepted: name another output, as in"):
        write_frozen_encoder(parse_backbone(f"onnx:{path}#vector"), SIZE, tmp_path / "frozen.onnx")
