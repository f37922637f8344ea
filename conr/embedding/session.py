"""An opened encoder, and the embeddings of many images through it, on all cores."""

import io
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from conr.data.images import ImageSource
from conr.errors import UserError, one_line
from conr.files import ArrayWriter, atomic_file
from conr.models.backbones import Preprocessing
from conr.observer import SILENT, Observer
from conr.processes import cores

INPUT, OUTPUT = "images", "embeddings"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "openvino": "OpenVINO"}
# Images in a batch, up to 32 pixels (inside the network); of larger ones fewer, so that it takes no more memory.
BATCH = {PROVIDERS["cpu"]: 128, PROVIDERS["cuda"]: 512, PROVIDERS["openvino"]: 128}


class Session(Protocol):
    """What embedding asks of an opened encoder: some methods of onnxruntime's InferenceSession."""

    def run(self, outputs: None, inputs: dict[str, NDArray[np.uint8]], /) -> list[Any]:
        """The outputs for a batch of images."""

    def get_providers(self) -> Sequence[str]:
        """What computes, first; one of `PROVIDERS`."""

    def get_outputs(self) -> Sequence[Any]:
        """The outputs, with name and shape."""

    def get_modelmeta(self) -> Any:
        """What is stored beside the graph."""


def open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file, on exactly the device asked for.

    On the CPU a call computes in one thread: `infer` makes as many calls as there are cores, which was as fast as all
    cores on one batch for a ResNet-18 in float32, and faster in int8 and for small layers.

    Args:
        path: the .onnx file.
        device: "cpu", "cuda", or "auto" for CUDA if this onnxruntime can use it and the file is no int8 one.

    Raises:
        UserError: the file is missing or damaged, an int8 one on CUDA, or onnxruntime would silently run it elsewhere.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; run conr extract first")
    if device == "auto":
        with suppress(UserError):
            return open_session(path, "cuda")
        return open_session(path, "cpu")
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise UserError(
            f"device: {device} was asked for, but this onnxruntime has no {provider} (onnxruntime-gpu has it); "
            "use --device cpu"
        )
    options = onnxruntime.SessionOptions()
    if device == "cpu":
        options.intra_op_num_threads = 1
    try:
        with redirect_stdout(io.StringIO()):  # of a damaged file it prints that it tries again
            session = onnxruntime.InferenceSession(path, options, providers=[provider])
        precision = properties(session).precision
    except Exception as error:  # onnxruntime raises classes of its own that share no public base
        raise UserError(f"{path} is not a whole ONNX file ({one_line(error)}); run conr extract again") from error
    if session.get_providers()[0] != provider:
        raise UserError(
            f"onnxruntime fell back from {provider} to {session.get_providers()[0]}; use --device cpu, or repair its "
            "CUDA installation"
        )
    if device == "cuda" and precision == "int8":
        raise UserError(f"{path} is an int8 encoder, which is for CPUs; use --device cpu")
    return session


class Properties(BaseModel):
    """What an encoder was made for, stored beside its graph; None and "float32" in a file that is not conr's.

    Attributes:
        image_size: height and width of its images.
        fit: how an image that is not square becomes so.
        precision: number format, float32, bfloat16 or int8.
        backbone: value of network.backbone, if a frozen network is inside.
        preprocessing: what that network needs its images to look like; it is done inside.
    """

    model_config = ConfigDict(frozen=True)

    image_size: int | None = None
    fit: str | None = None
    precision: str = "float32"
    backbone: str | None = None
    preprocessing: Preprocessing | None = None


def properties(session: Session) -> Properties:
    """What `conr.embedding.export.export` stored beside the graph."""
    return Properties.model_validate_json(session.get_modelmeta().custom_metadata_map.get("conr", "{}"))


def batch_size(session: Session, image_size: int) -> int:
    """How many images `infer` passes to an encoder at a time: on the CPU 128 of up to 32 pixels, 2 of 224."""
    most, inside = BATCH[session.get_providers()[0]], properties(session).preprocessing
    pixels = max(image_size, inside.size if inside else 0)
    return max(1, min(most, most * 32**2 // pixels**2))


def run_batches(session: Session, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(B, D) float32 embeddings of (B, S, S, 3) images, a batch after the other in this thread."""
    size = batch_size(session, images.shape[1])
    batches = [_run(session, images[first : first + size]) for first in range(0, len(images), size)]
    return np.concatenate([np.empty((0, session.get_outputs()[0].shape[1]), np.float32), *batches])


def _run(session: Session, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = session.run(None, {INPUT: np.ascontiguousarray(batch)})[0]
    return rows


def infer(session: Session, arrays: Iterable[ImageSource]) -> Generator[NDArray[np.float32], None, None]:
    """Embeddings of all images in order, several batches at a time in threads (onnxruntime releases Python's lock).

    While the caller uses a result or makes the next array the threads continue, but no further than two batches each:
    memory does not depend on the number of images. An error of a batch comes where its result would. Close the
    generator (`contextlib.closing`) to end the threads where it may be left early.

    Args:
        session: an opened encoder.
        arrays: each (N, S, S, 3) uint8, memory-mapped or not, or in shards; a thread reads what is not in memory yet.

    Yields:
        (B, D) float32 rows of B images: unit vectors, or what else the file's only output is.
    """
    workers = 2 if session.get_providers()[0] == PROVIDERS["cuda"] else cores()
    waiting: deque[Future[NDArray[np.float32]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for images in arrays:
            size = batch_size(session, images.shape[1])
            for first in range(0, len(images), size):
                waiting.append(pool.submit(_run, session, images[first : first + size]))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def embed(
    session: Session,
    images: ImageSource,
    path: Path,
    observer: Observer = SILENT,
    name: str = "embed",
) -> None:
    """Write the (N, D) float32 embeddings of (N, S, S, 3) uint8 images to an .npy file.

    Reading, inference and writing overlap. The observer is notified of every batch, in a task of that name.
    """
    dimension = session.get_outputs()[0].shape[1]
    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as file,
        observer.task(name, len(images)),
        closing(infer(session, [images])) as results,
    ):
        writer = ArrayWriter(file, (dimension,), np.float32)
        for rows in results:
            writer.append(rows)
            observer.step_done(len(rows))
        writer.close()
