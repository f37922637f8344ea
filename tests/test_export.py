"""The exported file computes what PyTorch computes, or there is no file."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from conr import export as exporting
from conr.errors import UserError
from conr.export import INPUT, OUTPUT, PROVIDERS, Embedder, check, embed, export, infer, open_session, properties
from conr.files import ArrayWriter
from conr.networks import Encoder, Network, group_batch_norm, mlp

DIMENSION = 16
PROPERTIES = {"image_size": 8, "fit": "crop", "note": "Käfer", "nested": {"list": [1, 2.5, None]}}


def images(count: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def network(stem: str = "cifar", size: int = 8, seed: int = 0, bn_group: int = 0) -> Network:
    """A small network whose batch-norm statistics are those of some batches, not those of a new network."""
    torch.manual_seed(seed)
    projector = mlp(64, 32, DIMENSION)
    result = Network(Encoder("resnet18", 8, stem), projector, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)).train()
    group_batch_norm(result, bn_group)
    with torch.no_grad():
        for _ in range(3):
            result(torch.rand(8, 3, size, size))
    return result.eval()


def features(network: Network, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network says in PyTorch, written out without the code under test."""
    scaled = torch.from_numpy(batch.astype(np.float32) / 255).permute(0, 3, 1, 2)
    with torch.no_grad():
        rows = network(scaled)
    unit: NDArray[np.float32] = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    return unit


def export_in(folder: Path, stem: str, size: int) -> Path:
    """Export a network that is still in training mode; the tests compare with one of the same seed in evaluation."""
    path = folder / "sub" / "encoder.onnx"
    export(network(stem, size).train(), size, path, PROPERTIES | {"image_size": size})
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the stem for small images, of 8 pixels."""
    return export_in(tmp_path_factory.mktemp("cifar"), "cifar", 8)


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
    together = session.run([OUTPUT], {INPUT: pixels})[0]
    alone = np.concatenate([session.run([OUTPUT], {INPUT: pixels[n : n + 1]})[0] for n in range(9)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


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
    assert properties(open_session(path, "cpu")) == PROPERTIES | {"image_size": size}


def test_a_file_that_is_not_ours_has_no_properties(encoder: Path, tmp_path: Path) -> None:
    proto = onnx.load(encoder)
    assert json.loads({entry.key: entry.value for entry in proto.metadata_props}["conr"]) == PROPERTIES
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    assert properties(open_session(tmp_path / "foreign.onnx", "cpu")) == {}


def test_a_network_with_grouped_batch_norm_is_exported_as_any_other(tmp_path: Path) -> None:
    model, pixels = network(bn_group=4), images(9, 8)
    export(network(bn_group=4).train(), 8, tmp_path / "encoder.onnx", {})
    found = open_session(tmp_path / "encoder.onnx", "cpu").run([OUTPUT], {INPUT: pixels})[0]
    np.testing.assert_allclose(found, features(model, pixels), atol=1e-5)


# What is refused


def test_a_file_of_its_own_network_passes(encoder: Path) -> None:
    check(encoder, network(), 8)


def test_a_file_of_another_network_is_refused(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.onnx does not match the network"):
        check(encoder, network(seed=1), 8)


def test_a_difference_in_the_statistics_alone_is_noticed(encoder: Path) -> None:
    model = network()
    model.encoder.bn1.running_mean.add_(0.5)  # type: ignore[operator, union-attr]
    with pytest.raises(UserError, match="does not match the network"):
        check(encoder, model, 8)


def test_a_file_for_images_of_another_size_is_refused(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.onnx does not run on 1 images of 12 pixels"):
        check(encoder, network(), 12)


def test_a_network_of_another_dimension_is_refused(encoder: Path) -> None:
    with pytest.raises(UserError, match="differs from PyTorch by inf"):
        check(encoder, Network(Encoder("resnet18", 8, "cifar"), mlp(64, 32, DIMENSION + 1)), 8)


def test_a_network_of_nan_is_refused(encoder: Path) -> None:
    model = network()
    torch.nn.init.constant_(model.encoder.conv1.weight, torch.nan)
    with pytest.raises(UserError, match="differs from PyTorch by nan"):
        check(encoder, model, 8)


def test_a_refused_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="does not match"):
        export(network(), 8, tmp_path / "encoder.onnx", {})
    assert list(tmp_path.iterdir()) == []


# Opening


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(encoder: Path, tmp_path: Path, share: float) -> None:
    content = encoder.read_bytes()
    path = tmp_path / "half.onnx"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"{path} is not a whole ONNX file"):
        open_session(path, "cpu")


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/encoder\.onnx does not exist; run conr extract first"):
        open_session(tmp_path / "encoder.onnx", "cpu")


@pytest.mark.skipif(PROVIDERS["cuda"] in onnxruntime.get_available_providers(), reason="onnxruntime has CUDA")
def test_cuda_is_refused_where_there_is_none(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"device: cuda was asked for, but this onnxruntime has no CUDA"):
        open_session(encoder, "cuda")
    assert open_session(encoder, "auto").get_providers() == [PROVIDERS["cpu"]]


# Embedding


def with_batches_of(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.BATCH, PROVIDERS["cpu"], count)


@pytest.mark.parametrize("count", [1, 4, 11, 40])
def test_embeddings_are_written_batch_by_batch(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with_batches_of(4, monkeypatch)
    session, pixels = open_session(encoder, "cpu"), images(count, 8)
    path = tmp_path / "sub" / "embeddings.npy"
    embed(session, pixels, path)
    found = np.load(path)
    assert found.dtype == np.float32
    assert found.shape == (count, DIMENSION)
    np.testing.assert_allclose(found, session.run([OUTPUT], {INPUT: pixels})[0], atol=1e-6)
    assert [file.name for file in path.parent.iterdir()] == ["embeddings.npy"]


def test_images_on_disk_are_embedded_as_those_in_memory(encoder: Path, tmp_path: Path) -> None:
    session, pixels = open_session(encoder, "cpu"), images(6, 8)
    np.save(tmp_path / "images.npy", pixels)
    embed(session, np.load(tmp_path / "images.npy", mmap_mode="r"), tmp_path / "mapped.npy")
    embed(session, pixels, tmp_path / "plain.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "mapped.npy"), np.load(tmp_path / "plain.npy"))


def test_a_failed_embedding_leaves_no_file(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_batches_of(2, monkeypatch)
    with pytest.raises(Exception, match=r"(?i)dimension"):
        embed(open_session(encoder, "cpu"), images(4, 9), tmp_path / "embeddings.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failure_while_writing_reaches_the_caller_and_ends_all_threads(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def append(writer: ArrayWriter, rows: NDArray[np.float32]) -> None:
        raise failure

    with_batches_of(2, monkeypatch)
    monkeypatch.setattr(ArrayWriter, "append", append)
    session, before = open_session(encoder, "cpu"), threading.active_count()
    with pytest.raises(type(failure)) as caught:
        embed(session, images(40, 8), tmp_path / "embeddings.npy")
    assert caught.value is failure
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_reading_reaches_the_caller_and_ends_all_threads(encoder: Path) -> None:
    def arrays() -> Iterator[NDArray[np.uint8]]:
        yield images(3, 8)
        raise OSError("the disk is gone")

    session, before = open_session(encoder, "cpu"), threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        list(infer(session, arrays()))
    assert threading.active_count() == before


class Recorder:
    """Stands for a session: it returns the images' first bytes, and lets a batch wait for the one after it."""

    def __init__(self, in_reverse: bool = False) -> None:
        self.in_reverse, self.sizes = in_reverse, dict[int, int]()
        self.finished = defaultdict[int, threading.Event](threading.Event)

    def get_providers(self) -> list[str]:
        return [PROVIDERS["cpu"]]

    def run(self, outputs: list[str], inputs: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        batch = inputs[INPUT]
        first = int(batch[0, 0, 0, 0])
        self.sizes[first] = len(batch)
        if self.in_reverse and first % 2 == 0:
            assert self.finished[first + 1].wait(30)
        self.finished[first].set()
        return [batch[:, 0, 0, :1].astype(np.float32)]


def numbered(count: int, size: int = 8) -> NDArray[np.uint8]:
    """Images of which the n-th is n all over."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, size, size, 3))


def test_batches_run_side_by_side_and_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second batch ends only after the one behind it."""
    with_batches_of(1, monkeypatch)
    monkeypatch.setattr(exporting, "cores", lambda: 2)
    rows = np.concatenate(list(infer(Recorder(in_reverse=True), [numbered(20)])))
    assert rows[:, 0].tolist() == list(range(20))


def test_no_more_is_read_than_the_threads_need(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def arrays() -> Iterator[NDArray[np.uint8]]:
        for number in range(100):
            taken.append(number)
            yield numbered(1)

    monkeypatch.setattr(exporting, "cores", lambda: 3)
    with closing(infer(Recorder(), arrays())) as results:
        for done in range(5):
            next(results)
            assert len(taken) == done + 6


@pytest.mark.parametrize(("size", "batch"), [(8, 16), (32, 16), (64, 4), (96, 1), (224, 1)])
def test_a_batch_of_larger_images_holds_fewer(monkeypatch: pytest.MonkeyPatch, size: int, batch: int) -> None:
    with_batches_of(16, monkeypatch)
    session = Recorder()
    list(infer(session, [numbered(2 * batch + 1, size)]))
    assert session.sizes == {0: batch, batch: batch, 2 * batch: 1}
