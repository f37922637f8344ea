"""An opened encoder, and the embeddings of many images: in order, side by side, and whole or not at all."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from recorder import Recorder
from small_encoder import DIMENSION, images

from conr.embedding import session as module
from conr.embedding.session import BATCH, INPUT, OUTPUT, PROVIDERS, embed, infer, open_session
from conr.errors import UserError
from conr.files import ArrayWriter

# Opening


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(encoder: Path, tmp_path: Path, share: float) -> None:
    content = encoder.read_bytes()
    path = tmp_path / "half.onnx"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"^{path} .*conr extract"):
        open_session(path, "cpu")


def test_a_file_with_foreign_properties_is_named(encoder: Path, tmp_path: Path) -> None:
    proto = onnx.load(encoder)
    onnx.helper.set_model_props(proto, {"conr": '{"image_size": "eight"}'})
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match=rf"^{tmp_path}/foreign\.onnx .*conr extract"):
        open_session(tmp_path / "foreign.onnx", "cpu")


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/encoder\.onnx does not exist.*conr extract"):
        open_session(tmp_path / "encoder.onnx", "cpu")


@pytest.mark.skipif(PROVIDERS["cuda"] in onnxruntime.get_available_providers(), reason="onnxruntime has CUDA")
def test_cuda_is_refused_where_there_is_none(encoder: Path) -> None:
    with pytest.raises(UserError, match=r"^device: cuda .*--device cpu"):
        open_session(encoder, "cuda")
    assert open_session(encoder, "auto").get_providers() == [PROVIDERS["cpu"]]


# Embedding


def with_batches_of(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BATCH, PROVIDERS["cpu"], count)


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


def test_the_observer_is_notified_of_every_batch(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_batches_of(4, monkeypatch)
    recorder = Recorder()
    embed(open_session(encoder, "cpu"), images(11, 8), tmp_path / "embeddings.npy", recorder, "embed 7")
    assert recorder.tasks == [("embed 7", 11, 0)]
    assert [amount for amount, _ in recorder.steps] == [4, 4, 3]


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


class Session:
    """Stands for a session: it returns the images' first bytes, and lets a batch wait for the one after it."""

    def __init__(self, in_reverse: bool = False) -> None:
        self.in_reverse, self.sizes = in_reverse, dict[int, int]()
        self.finished = defaultdict[int, threading.Event](threading.Event)

    def get_modelmeta(self) -> SimpleNamespace:
        return SimpleNamespace(custom_metadata_map={})

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
    monkeypatch.setattr(module, "cores", lambda: 2)
    rows = np.concatenate(list(infer(Session(in_reverse=True), [numbered(20)])))
    assert rows[:, 0].tolist() == list(range(20))


def test_no_more_is_read_than_the_threads_need(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def arrays() -> Iterator[NDArray[np.uint8]]:
        for number in range(100):
            taken.append(number)
            yield numbered(1)

    monkeypatch.setattr(module, "cores", lambda: 3)
    with closing(infer(Session(), arrays())) as results:
        for done in range(5):
            next(results)
            assert len(taken) == done + 6


@pytest.mark.parametrize(("size", "batch"), [(8, 16), (32, 16), (64, 4), (96, 1), (224, 1)])
def test_a_batch_of_larger_images_holds_fewer(monkeypatch: pytest.MonkeyPatch, size: int, batch: int) -> None:
    with_batches_of(16, monkeypatch)
    session = Session()
    list(infer(session, [numbered(2 * batch + 1, size)]))
    assert session.sizes == {0: batch, batch: batch, 2 * batch: 1}
