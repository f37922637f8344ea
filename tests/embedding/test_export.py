"""The exported file computes what PyTorch computes, or there is no file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_encoder import DIMENSION, export_in, features, images, network, properties_of

from conr.embedding import export as module
from conr.embedding.export import Embedder, check, export
from conr.embedding.session import INPUT, OUTPUT, Properties, open_session, properties
from conr.errors import UserError
from conr.models.heads import mlp
from conr.models.resnet import Encoder
from conr.models.siamese import Network


@pytest.fixture(scope="module")
def imagenet_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the stem for large images, of 32 pixels."""
    return export_in(tmp_path_factory.mktemp("imagenet"), "imagenet", 32)


@pytest.fixture(scope="module", params=["cifar", "imagenet"])
def exported(request: pytest.FixtureRequest) -> tuple[Network, int, Path]:
    """A network, the size of its images, and its file."""
    if request.param == "cifar":
        return network("cifar", 8), 8, request.getfixturevalue("encoder")
    return network("imagenet", 32), 32, request.getfixturevalue("imagenet_encoder")


# What the file computes


@pytest.mark.parametrize("batch", [1, 3, 65])
def test_the_file_computes_what_pytorch_computes(exported: tuple[Network, int, Path], batch: int) -> None:
    model, size, path = exported
    pixels = images(batch, size)
    found = open_session(path, "cpu").run([OUTPUT], {INPUT: pixels})[0]
    assert found.shape == (batch, DIMENSION)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, features(model, pixels), atol=1e-5)


def test_it_returns_unit_vectors_that_differ(exported: tuple[Network, int, Path]) -> None:
    _, size, path = exported
    found = open_session(path, "cpu").run([OUTPUT], {INPUT: images(20, size)})[0]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.std(axis=0).max() > 0.01


def test_an_image_is_embedded_alike_in_any_batch(exported: tuple[Network, int, Path]) -> None:
    _, size, path = exported
    session, pixels = open_session(path, "cpu"), images(9, size)
    at_once = session.run([OUTPUT], {INPUT: pixels})[0]
    one_by_one = np.concatenate([session.run([OUTPUT], {INPUT: pixels[n : n + 1]})[0] for n in range(9)])
    np.testing.assert_allclose(at_once, one_by_one, atol=1e-5)


def test_it_takes_bytes_and_any_number_of_images(exported: tuple[Network, int, Path]) -> None:
    _, size, path = exported
    (taken,) = open_session(path, "cpu").get_inputs()
    assert (taken.name, taken.type) == ("images", "tensor(uint8)")
    assert isinstance(taken.shape[0], str)  # a name, not a number
    assert taken.shape[1:] == [size, size, 3]
    (given,) = open_session(path, "cpu").get_outputs()
    assert (given.name, given.type) == ("embeddings", "tensor(float)")
    assert given.shape == [taken.shape[0], DIMENSION]


def test_the_file_is_valid_and_stands_alone(exported: tuple[Network, int, Path]) -> None:
    _, _, path = exported
    onnx.checker.check_model(str(path), full_check=True)
    assert [file.name for file in path.parent.iterdir()] == ["encoder.onnx"]  # no weights beside it


def test_the_embedder_itself_computes_the_same(exported: tuple[Network, int, Path]) -> None:
    model, size, _ = exported
    pixels = images(5, size)
    with torch.no_grad():
        found = Embedder(model).eval()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(found, features(model, pixels), atol=1e-6)


def test_properties_come_back(exported: tuple[Network, int, Path]) -> None:
    _, size, path = exported
    assert properties(open_session(path, "cpu")) == properties_of(size)


def test_a_file_that_is_not_ours_has_no_properties(encoder: Path, tmp_path: Path) -> None:
    proto = onnx.load(encoder)
    stored = {entry.key: entry.value for entry in proto.metadata_props}["conr"]
    assert Properties.model_validate_json(stored) == properties_of(8)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    assert properties(open_session(tmp_path / "foreign.onnx", "cpu")) == Properties()


def test_a_network_with_grouped_batch_norm_is_exported_as_any_other(tmp_path: Path) -> None:
    model, pixels = network(bn_group=4), images(9, 8)
    export(network(bn_group=4).train(), 8, tmp_path / "encoder.onnx", properties_of(8))
    found = open_session(tmp_path / "encoder.onnx", "cpu").run([OUTPUT], {INPUT: pixels})[0]
    np.testing.assert_allclose(found, features(model, pixels), atol=1e-5)


# What is refused


def test_a_file_of_its_own_network_passes(encoder: Path) -> None:
    check(encoder, network(), 8)


def test_a_file_of_another_network_is_refused(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"^encoder\.onnx "):
        check(encoder, network(seed=1), 8)


def test_a_difference_in_the_statistics_alone_is_noticed(encoder: Path) -> None:
    model = network()
    model.encoder.bn1.running_mean.add_(0.5)  # type: ignore[operator, union-attr]
    with pytest.raises(UserError, match=r"^encoder\.onnx "):
        check(encoder, model, 8)


def test_a_file_for_images_of_another_size_is_refused(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"^encoder\.onnx .*1 images of 12 pixels"):
        check(encoder, network(), 12)


def test_a_network_of_another_dimension_is_refused(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"^encoder\.onnx .* inf "):
        check(encoder, Network(Encoder("resnet18", 8, "cifar"), mlp(64, 32, DIMENSION + 1)), 8)


def test_a_network_of_nan_is_refused(encoder: Path) -> None:
    model = network()
    torch.nn.init.constant_(model.encoder.conv1.weight, torch.nan)
    with pytest.raises(UserError, match=r"^encoder\.onnx .* nan "):
        check(encoder, model, 8)


def test_a_refused_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"^encoder\.onnx\S* "):
        export(network(), 8, tmp_path / "encoder.onnx", properties_of(8))
    assert list(tmp_path.iterdir()) == []
