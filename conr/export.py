"""The encoder as one ONNX file, refused unless it computes what PyTorch computes; and embeddings through it.

The graph takes uint8 images and returns unit vectors: scaling, normalisation and l2-normalisation are inside, so
nothing about the data set has to be known to use it.
"""

import io
import json
import logging
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from conr.errors import UserError
from conr.files import ArrayWriter, atomic_file
from conr.networks import Network
from conr.processes import cores
from conr.progress import Progress, silent
from conr.views import to_pixels

CHECKED_BATCH_SIZES = (1, 2, 7, 64)
TOLERANCE = 1e-4  # largest difference of an element of a unit vector; float32 sums differ by about 1e-6
INPUT, OUTPUT = "images", "embeddings"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Images in a batch, up to 32 pixels; of larger ones fewer, so that a batch takes no more memory.
BATCH = {PROVIDERS["cpu"]: 128, PROVIDERS["cuda"]: 512}


class Embedder(nn.Module):
    """A network from uint8 images to unit vectors.

    Args:
        network: encoder and projector.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, H, W, 3) uint8 images to (B, D) float32 unit vectors."""
        return F.normalize(self.network(to_pixels(images)), dim=1)


def export(network: Network, image_size: int, path: Path, properties: Mapping[str, object]) -> None:
    """Write a network as ONNX and check the file against PyTorch.

    Args:
        network: encoder and projector; it is moved to the CPU and to evaluation mode.
        image_size: height and width of the images.
        path: the .onnx file.
        properties: what to store beside the graph, as JSON.

    Raises:
        UserError: the file computes something else; nothing is left under `path`.
    """
    embedder = Embedder(network.cpu().eval()).eval()
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the exporter chats
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        program = torch.onnx.export(
            embedder,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"conr": json.dumps(dict(properties))})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        check(temporary, network, image_size)


def check(path: Path, network: Network, image_size: int) -> None:
    """Compare an ONNX file with a network on random images, at several batch sizes.

    Raises:
        UserError: they differ, or the file takes other images.
    """
    session = open_session(path, "cpu")
    embedder = Embedder(network).eval()
    generator = np.random.default_rng(0)
    for batch in CHECKED_BATCH_SIZES:
        images = generator.integers(0, 256, (batch, image_size, image_size, 3), dtype=np.uint8)
        with torch.no_grad():
            expected = embedder(torch.from_numpy(images)).numpy()
        try:
            found = session.run([OUTPUT], {INPUT: images})[0]
        except Exception as error:  # onnxruntime raises classes of its own that share no public base
            raise UserError(f"{path.name} does not run on {batch} images of {image_size} pixels: {error}") from error
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path.name} does not match the network: for {batch} images onnxruntime differs from PyTorch by "
                f"{difference:.2g} (accepted: {TOLERANCE:g}). It is refused; another version of torch or onnxruntime "
                "may export it right"
            )


def open_session(path: Path, device: str) -> onnxruntime.InferenceSession:
    """Open an ONNX file, on exactly the device asked for.

    On the CPU a call computes in one thread: `infer` makes as many calls as there are cores, which was as quick as all
    cores on one batch for a ResNet-18 in float32, and quicker in int8 and for small layers.

    Args:
        path: the .onnx file.
        device: "cpu", "cuda", or "auto" for CUDA if this onnxruntime can use it and the file is no int8 one.

    Raises:
        UserError: the file is missing or damaged, an int8 one on CUDA, or onnxruntime would silently run it elsewhere.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; run conr extract first")
    available = onnxruntime.get_available_providers()
    chosen = device
    if device == "auto":
        chosen = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    provider = PROVIDERS[chosen]
    if provider not in available:
        raise UserError(
            f"device: {device} was asked for, but this onnxruntime has no {provider} (onnxruntime-gpu has it); "
            "use --device cpu"
        )
    options = onnxruntime.SessionOptions()
    if chosen == "cpu":
        options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # onnxruntime raises classes of its own that share no public base
        raise UserError(f"{path} is not a whole ONNX file ({error}); run conr extract again") from error
    fell_back = session.get_providers()[0] != provider
    int8_on_cuda = chosen == "cuda" and properties(session).get("precision") == "int8"
    if device == "auto" and (fell_back or int8_on_cuda):
        return open_session(path, "cpu")
    if fell_back:
        raise UserError(
            f"onnxruntime fell back from {provider} to {session.get_providers()[0]}; use --device cpu, or mend its "
            "CUDA installation"
        )
    if int8_on_cuda:
        raise UserError(f"{path} is an int8 encoder, which is for CPUs; use --device cpu")
    return session


def properties(session: onnxruntime.InferenceSession) -> dict[str, object]:
    """What `export` stored beside the graph; empty for a file that is not ours."""
    stored = session.get_modelmeta().custom_metadata_map.get("conr", "{}")
    result: dict[str, object] = json.loads(stored)
    return result


def infer(
    session: onnxruntime.InferenceSession, arrays: Iterable[NDArray[np.uint8]]
) -> Generator[NDArray[np.float32], None, None]:
    """Embeddings of all images in order, several batches at a time in threads (onnxruntime releases Python's lock).

    While the caller uses a result or makes the next array the threads go on, but no further than two batches each:
    memory does not depend on the number of images. An error of a batch comes where its result would. Close the
    generator (`contextlib.closing`) to end the threads where it may be left early.

    Args:
        session: an opened encoder.
        arrays: each (N, S, S, 3) uint8, memory-mapped or not; a thread reads what is not in memory yet.

    Yields:
        (B, D) float32 unit vectors of B images.
    """

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = session.run([OUTPUT], {INPUT: np.ascontiguousarray(batch)})[0]
        return rows

    provider = session.get_providers()[0]
    workers = cores() if provider == PROVIDERS["cpu"] else 2
    waiting: deque[Future[NDArray[np.float32]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for images in arrays:
            size = max(1, min(BATCH[provider], BATCH[provider] * 32**2 // images.shape[1] ** 2))
            for first in range(0, len(images), size):
                waiting.append(pool.submit(run, images[first : first + size]))
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def embed(
    session: onnxruntime.InferenceSession,
    images: NDArray[np.uint8],
    path: Path,
    progress: Progress = silent,
    description: str = "embed",
) -> None:
    """Write the embeddings of all images to an .npy file; reading, inference and writing overlap.

    Args:
        session: an opened encoder.
        images: (N, S, S, 3) uint8, memory-mapped or not.
        path: the (N, D) float32 file.
        progress: told of every batch.
        description: name of the task.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dimension = session.get_outputs()[0].shape[1]
    with (
        atomic_file(path) as temporary,
        temporary.open("wb") as file,
        progress(description, len(images)) as advance,
        closing(infer(session, [images])) as results,
    ):
        writer = ArrayWriter(file, (dimension,), np.float32)
        for rows in results:
            writer.append(rows)
            advance(len(rows))
        writer.close()
