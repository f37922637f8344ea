"""Encoders with a frozen network in bfloat16, by OpenVINO, on processors that compute in it.

An ONNX file holds float32 weights whatever its precision; bfloat16 says how products are computed. Sums stay float32.
"""

import importlib.util
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from conr.data.images import ImageSource
from conr.embedding.session import PROVIDERS, Session, open_session, properties, run_batches
from conr.errors import Note, UserError, one_line
from conr.files import atomic_file
from conr.processes import cores

SIMILARITY = 0.98  # least mean cosine similarity of centered features to those in float32
SAMPLE = 32  # images that are compared, at most
INSTALL = "run pip install 'conr[openvino]'"

Format = Literal["float32", "bfloat16"]


class OpenVinoSession:
    """What `Session` asks for, with the frozen network of an encoder computed by OpenVINO in bfloat16.

    What conr has put before and behind the network stays with onnxruntime, in float32. Calls in several threads run
    side by side, each in one thread.

    Args:
        path: of the .onnx file.

    Raises:
        UserError: OpenVINO is not installed, cannot compute in bfloat16 here, or cannot run the network.
    """

    def __init__(self, path: Path) -> None:
        for package in ("openvino", "onnx"):  # the second is not everywhere where one assigns
            if importlib.util.find_spec(package) is None:
                raise UserError(f"the package {package} is not installed; {INSTALL}")
        from openvino import Core

        from conr.embedding.splitting import split_at_network

        core = Core()
        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError("this processor does not compute in bfloat16")
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": cores(),
            "NUM_STREAMS": cores(),
            "ENABLE_CPU_PINNING": False,  # else several processes compute on the same core
        }
        before, network, behind = split_at_network(path)
        try:
            self._network = core.compile_model(core.read_model(network), "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot run the network ({one_line(error)})") from error
        self._before, self._behind = _opened(before), _opened(behind)
        self._own = threading.local()

    def run(self, outputs: None, inputs: dict[str, NDArray[np.uint8]]) -> list[Any]:
        """The embeddings of a batch of images."""
        if not hasattr(self._own, "request"):
            self._own.request = self._network.create_infer_request()
        prepared = self._before.run(None, inputs)[0]
        found = self._own.request.infer([prepared], share_inputs=True)[0].astype(np.float32)
        embeddings: list[Any] = self._behind.run(None, {self._behind.get_inputs()[0].name: found})
        return embeddings

    def get_providers(self) -> list[str]:
        """The name of what computes."""
        return [PROVIDERS["openvino"]]

    def get_outputs(self) -> Sequence[Any]:
        """Of the whole encoder."""
        outputs: Sequence[Any] = self._behind.get_outputs()
        return outputs

    def get_modelmeta(self) -> Any:
        """Of the whole encoder."""
        return self._behind.get_modelmeta()


def _opened(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=[PROVIDERS["cpu"]])


def open_embedder(path: Path, device: str, exact: bool = False) -> Session:
    """Open an encoder to embed images in the precision that it was made for.

    Args:
        path: the .onnx file.
        device: "cpu", "cuda" or "auto". A GPU computes in float32.
        exact: whether an encoder in bfloat16 may not be run in float32 where a CPU cannot do better.

    Raises:
        UserError: as `conr.embedding.session.open_session`; or it cannot be run exactly.
    """
    session: Session = open_session(path, device)
    if properties(session).precision != "bfloat16" or session.get_providers()[0] != PROVIDERS["cpu"]:
        return session
    try:
        return OpenVinoSession(path)
    except UserError as error:
        if exact:
            raise UserError(f"{path.name} is an encoder in bfloat16: {error}") from error
        warnings.warn(
            f"{path.name} was made in bfloat16 and is run in float32, which gives a few images other clusters: {error}",
            Note,
            stacklevel=2,
        )
        return session


def computed_in(session: Session) -> str:
    """The number format in which an encoder is run here."""
    precision = properties(session).precision
    exact = precision == "bfloat16" and session.get_providers()[0] != PROVIDERS["openvino"]
    return "float32" if exact else precision


def settle_precision(encoder: Path, asked: str, device: str, images: ImageSource) -> Format:
    """Settle in which precision a frozen network computes, and store it in its file.

    "auto" is bfloat16 where OpenVINO is installed and the processor computes in it, if the features are like those in
    float32: their mean cosine similarity is at least `SIMILARITY`, the mean of the images subtracted.

    Args:
        encoder: the file that `conr.embedding.frozen.write_frozen_encoder` wrote; changed if it is bfloat16.
        asked: "auto", "float32" or "bfloat16".
        device: as for `open_embedder`.
        images: (N, S, S, 3) uint8, of which at most `SAMPLE` are compared.

    Raises:
        UserError: bfloat16 was asked for and is not possible.
    """
    session = open_session(encoder, device)
    if asked == "float32" or session.get_providers()[0] != PROVIDERS["cpu"]:
        return "float32"
    if asked == "auto" and importlib.util.find_spec("openvino") is None:
        return "float32"
    sample = images[np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int)]
    try:
        _compare(session, OpenVinoSession(encoder), sample)
    except UserError as error:
        if asked == "bfloat16":
            raise UserError(f"precision = bfloat16 is not possible: {error}; or use --precision float32") from error
        return "float32"
    import onnx  # not needed to embed, and so not everywhere installed

    model = onnx.load(encoder)
    stored = properties(session).model_copy(update={"precision": "bfloat16"})
    onnx.helper.set_model_props(model, {"conr": stored.model_dump_json()})
    with atomic_file(encoder) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return "bfloat16"


def _compare(exact: Session, session: Session, images: NDArray[np.uint8]) -> None:
    try:
        expected, found = run_batches(exact, images), run_batches(session, images)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot run the network ({one_line(error)})") from error
    mean = expected.mean(axis=0) if len(images) > 1 else 0
    expected, found = expected - mean, found - mean
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    similarity = float(((expected * found).sum(axis=1)[lengths > 0] / lengths[lengths > 0]).mean())
    if not similarity >= SIMILARITY:
        raise UserError(
            f"the mean cosine similarity of the features to those in float32 is {similarity:.3f} on {len(images)} "
            f"images (accepted: {SIMILARITY:g})"
        )
