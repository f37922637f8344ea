"""The encoder in 8-bit integers, by onnxruntime's static quantization; refused unless it gives the same embeddings.

Weights are signed, a scale for each output channel; activations are unsigned, their ranges those of a sample of the
training images. The last product and the l2-normalization stay float32: they cost little and decide the result. So do
the first convolutions of a frozen network, and all that conr put around it; the mean that is subtracted from its
features becomes that of the int8 features.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static

from conr.data.images import ImageSource
from conr.embedding.nodes import NETWORK, declare
from conr.embedding.session import INPUT, infer, open_session, properties
from conr.errors import UserError
from conr.files import atomic_file
from conr.observer import SILENT, Observer

CALIBRATION, HELD_OUT = 512, 256  # images, at most
BATCH = 32
SIMILARITY = 0.99  # least mean cosine similarity to float32; trained encoders reach 0.999 and more
PRODUCTS = {"Gemm", "MatMul"}
FIRST_CONVOLUTIONS = 6  # of a frozen network: they have few channels, and in int8 cost the most similarity


def quantize(encoder: Path, images: ImageSource, path: Path, observer: Observer = SILENT) -> float:
    """Write the int8 form of an encoder and compare it with the original on images that it was not calibrated on.

    Args:
        encoder: the float32 file that `conr.embedding.export.export` wrote.
        images: (N, S, S, 3) uint8, N ≥ 2, those that it was trained on, of which a seeded sample is used.
        path: the int8 file; the original's properties are stored in it, with precision "int8".
        observer: notified of every batch of the calibration.

    Returns:
        The mean cosine similarity to the float32 embeddings.

    Raises:
        UserError: that is below `SIMILARITY`; nothing is left under `path`.
    """
    order = np.random.default_rng(0).permutation(len(images))
    count = min(CALIBRATION, len(images) // 2)
    calibration, held_out = (np.sort(part) for part in (order[:count], order[count : count + HELD_OUT]))
    stored = properties(open_session(encoder, "cpu")).model_copy(update={"precision": "int8"})
    with TemporaryDirectory() as folder, atomic_file(path) as temporary:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(encoder, prepared, skip_symbolic_shape=True)  # batch norm folded, shapes inferred
        model = onnx.load(prepared)
        in_float32 = _around_the_network(model) if stored.preprocessing else _from_the_last_product_on(model)
        onnx.save(model, prepared)
        with observer.task("calibrate", count):
            quantize_static(
                prepared,
                temporary,
                _Reader(images, calibration, observer),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=in_float32,
            )
        model = onnx.load(temporary)
        onnx.helper.set_model_props(model, {"conr": stored.model_dump_json()})
        if stored.preprocessing:
            _correct_mean(model, onnx.load(encoder), images, calibration, Path(folder) / "features.onnx")
        temporary.write_bytes(model.SerializeToString())
        similarity = _similarity(encoder, temporary, images[held_out])
        if not similarity >= SIMILARITY:
            raise UserError(
                f"the int8 encoder differs from the float32 one: on {len(held_out)} images that it was not calibrated "
                f"on, the embeddings' mean cosine similarity is {similarity:.3f} (accepted: {SIMILARITY:g}). It is "
                "refused; use extract.precision = float32"
            )
    return similarity


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Passes the chosen images to onnxruntime, batch by batch."""

    def __init__(self, images: ImageSource, chosen: NDArray[np.int64], observer: Observer) -> None:
        self.images, self.observer = images, observer
        self.batches = iter([chosen[first : first + BATCH] for first in range(0, len(chosen), BATCH)])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        rows = next(self.batches, None)
        if rows is None:
            return None
        self.observer.step_done(len(rows))
        return {INPUT: self.images[rows]}


def _from_the_last_product_on(model: onnx.ModelProto) -> list[str]:
    """Names of the last product's node and of all after it."""
    nodes = list(model.graph.node)
    last = max(position for position, node in enumerate(nodes) if node.op_type in PRODUCTS)
    return [node.name for node in nodes[last:]]


def _around_the_network(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes around a frozen network, and of its first convolutions; nodes without a name get one."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{NETWORK}{number}"
    around = [node.name for node in model.graph.node if not node.name.startswith(NETWORK)]
    inside = [node.name for node in model.graph.node if node.name.startswith(NETWORK) and node.op_type == "Conv"]
    return around + inside[:FIRST_CONVOLUTIONS]


def _correct_mean(
    model: onnx.ModelProto, original: onnx.ModelProto, images: ImageSource, chosen: NDArray[np.int64], path: Path
) -> None:
    """Add to the mean that is subtracted from a frozen network's features how much int8 changes their mean.

    It is the bias correction of Nagel et al. (2019, arXiv:1906.04721), of the last layer alone and from images.
    """
    node = next(node for node in model.graph.node if node.op_type == "Sub" and not node.name.startswith(NETWORK))
    features, name = node.input
    mean = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    before, after = (_mean(part, features, mean.dims[0], images, chosen, path) for part in (original, model))
    mean.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(mean) + (after - before), name))


def _mean(
    model: onnx.ModelProto, value: str, length: int, images: ImageSource, chosen: NDArray[np.int64], path: Path
) -> NDArray[np.float32]:
    """Mean over images of a value in a graph, (B, length); the graph up to it is written to a temporary file."""
    shortened = onnx.ModelProto()
    shortened.CopyFrom(model)
    del shortened.graph.output[:]
    shortened.graph.output.append(declare(value, TensorProto.FLOAT, ("batch", length)))
    onnx.save(shortened, path)
    parts = (images[chosen[first : first + BATCH]] for first in range(0, len(chosen), BATCH))
    mean: NDArray[np.float32] = np.concatenate(list(infer(open_session(path, "cpu"), parts))).mean(axis=0)
    return mean


def _similarity(first: Path, second: Path, images: NDArray[np.uint8]) -> float:
    """Mean cosine similarity of what two files make of images."""
    ours, theirs = (np.concatenate(list(infer(open_session(path, "cpu"), [images]))) for path in (first, second))
    return float((ours * theirs).sum(axis=1).mean())
