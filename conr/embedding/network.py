"""An image network in an ONNX file that somebody else made: opened, or refused with a reason."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto
from pydantic import ValidationError

from conr.embedding.nodes import OLDEST_OPSET
from conr.errors import Note, UserError, one_line
from conr.models.backbones import KEY, Preprocessing, external_files, read_card

CARD = "preprocessing"  # the key of a file's metadata under which its card may be, as JSON
DEFAULT_SIZE = 224  # of a network that says nothing
OUTPUT_KINDS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
LARGEST = 2**31 - 2**24  # bytes that one ONNX file can hold, less some room
KINDS: dict[int, type[np.generic]] = {  # of inputs
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.UINT8: np.uint8,
}


@dataclass(frozen=True)
class ImageNetwork:
    """An ONNX network with one image input and one output.

    Attributes:
        model: the graph with all weights in it, reduced to what the output needs.
        name: of the file, for messages.
        input, output: their names.
        kind: ONNX's number of the input's type.
        fixed_batch: the only batch size that the file accepts, or None.
        preprocessing: what its images have to look like.
    """

    model: onnx.ModelProto
    name: str
    input: str
    output: str
    kind: int
    fixed_batch: int | None
    preprocessing: Preprocessing

    def run(self, prepared: NDArray[np.float64]) -> NDArray[np.generic]:
        """The output for prepared images, (B, 3, S, S) float64, computed by the file as it is.

        Raises:
            UserError: it does not run.
        """
        values = prepared if self.preprocessing.layout == "nchw" else prepared.transpose(0, 2, 3, 1)
        if self.kind == TensorProto.UINT8:
            values = np.floor(values + 0.5)
        inputs = np.ascontiguousarray(values.astype(KINDS[self.kind]))
        try:
            session = _session(self.model)
            step = self.fixed_batch or len(inputs)
            filled = inputs[np.arange(-(-len(inputs) // step) * step) % len(inputs)]  # the last batch is whole, too
            parts = [
                session.run([self.output], {self.input: filled[first : first + step]})[0]
                for first in range(0, len(filled), step)
            ]
        except Exception as error:  # onnxruntime raises classes of its own that share no public base
            size = self.preprocessing.size
            raise UserError(f"{self.name} does not run on images of {size} pixels: {one_line(error)}") from error
        result: NDArray[np.generic] = np.concatenate(parts)[: len(inputs)]
        return result

    def with_any_batch(self) -> "ImageNetwork":
        """The same network without a fixed batch size: its declarations are changed, and nothing else."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for value in (*model.graph.input, *model.graph.output):
            if value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_param = "batch"
        return replace(self, model=model, fixed_batch=None)


def open_network(path: Path, output: str | None = None, name: str | None = None) -> ImageNetwork:
    """Open an ONNX file that maps images to features.

    Args:
        path: the file; weights in files beside it are read, too.
        output: name of one of its outputs, or of any value in it; None for its last output.
        name: what messages call it.

    Raises:
        UserError: it is missing or damaged, does not take one batch of images, or has no such output.
    """
    name = name or f"{KEY}: {path}"
    model = _load(path, name)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"{name} has {len(inputs)} inputs ({names}); it must have one, a batch of images")
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)  # before 4, an initializer had to be an input
    chosen = _choose_output(model, output, name)
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in KINDS:
        what = TensorProto.DataType.Name(kind).lower()
        raise UserError(f"{name} takes {what}; it must take images as float32, float16 or uint8")
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in inputs[0].type.tensor_type.shape.dim]
    card = _card(path, model, name) or _assumed_card(dims, kind, name)
    _check_shape(dims, card, name)
    return ImageNetwork(model, name, inputs[0].name, chosen, kind, dims[0] or None, card)


def _load(path: Path, name: str) -> onnx.ModelProto:
    if not path.is_file():
        raise UserError(f"{name} does not exist; name an ONNX file")
    if sum(file.stat().st_size for file in (path, *external_files(path))) > LARGEST:
        raise UserError(f"{name} holds more than 2 GiB, which one ONNX file cannot; use a smaller network or float16")
    try:
        model = onnx.load(path)
    except Exception as error:  # of protobuf, or of the files with weights beside it
        raise UserError(f"{name} is not a whole ONNX file ({one_line(error)}); export it again") from error
    if not model.graph.node or not model.graph.output:
        raise UserError(f"{name} is not an ONNX network: it holds no graph; name another file")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise UserError(f"{name} is written in ONNX opset {opset}; export it in opset {OLDEST_OPSET} or later")
    return model


def _choose_output(model: onnx.ModelProto, output: str | None, name: str) -> str:
    """Make one value the only output, and remove the nodes and weights that it does not need."""
    graph = model.graph
    listed = [value.name for value in graph.output]
    chosen = output or listed[-1]
    if chosen not in listed and not any(chosen in node.output for node in graph.node):
        raise UserError(f"{name} has no output {chosen}; its outputs are {', '.join(listed)}")
    declared = next((value for value in graph.output if value.name == chosen), None)
    if declared is None:
        known = onnx.shape_inference.infer_shapes(model).graph.value_info
        declared = next((value for value in known if value.name == chosen), None)
    if declared is None:
        declared = onnx.ValueInfoProto(name=chosen)
    elif (kind := declared.type.tensor_type.elem_type) not in OUTPUT_KINDS:
        what = TensorProto.DataType.Name(kind).lower()
        raise UserError(f"{name}: output {chosen} is {what}, not float; its outputs are {', '.join(listed)}")
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(declared)
    del graph.output[:]
    graph.output.append(kept)
    del graph.value_info[:]
    prune(graph, chosen)
    return chosen


def prune(graph: onnx.GraphProto, output: str) -> None:
    """Remove the nodes and weights that a value does not need."""
    needed, kept = {output}, []
    for node in reversed(graph.node):  # sorted: a node stands behind those that it needs
        if needed & set(node.output):
            kept.append(node)
            needed |= _read_by(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, also inside its branches and loops."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names |= {value.name for value in graph.output}
            for inner in graph.node:
                names |= _read_by(inner)
    return names


def _card(path: Path, model: onnx.ModelProto, name: str) -> Preprocessing | None:
    """The card beside a file or, if there is none, the one in its metadata."""
    if (beside := path.with_suffix(".json")).is_file():
        return read_card(beside)
    inside = {entry.key: entry.value for entry in model.metadata_props}.get(CARD)
    if inside is None:
        return None
    try:
        return Preprocessing.model_validate_json(inside)
    except ValidationError as error:
        raise UserError(f"{name}: its metadata {CARD} is damaged ({one_line(error)}); export it again") from error


def _assumed_card(dims: list[int | None], kind: int, name: str) -> Preprocessing:
    layout: Literal["nchw", "nhwc"] = "nhwc" if len(dims) == 4 and dims[3] == 3 and dims[1] != 3 else "nchw"
    sides = dims[2:] if layout == "nchw" else dims[1:3]
    size = next((side for side in sides if side), DEFAULT_SIZE)
    if kind == TensorProto.UINT8:
        card = Preprocessing(size=size, layout=layout, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)
        what = "pixels from 0 to 255"
    else:
        card, what = Preprocessing(size=size, layout=layout), "ImageNet's mean and std"
    warnings.warn(
        f"{name} does not say what its images have to look like; assumed: RGB, {size} pixels, {what}. If that is "
        "wrong, write a preprocessing card beside it (docs/backbones.md)",
        Note,
        stacklevel=2,
    )
    return card


def _check_shape(dims: list[int | None], card: Preprocessing, name: str) -> None:
    if len(dims) != 4:
        raise UserError(f"{name} takes an input of {len(dims)} dimensions; it must take images, (B, 3, H, W)")
    channels, *sides = (dims[1], dims[2], dims[3]) if card.layout == "nchw" else (dims[3], dims[1], dims[2])
    if channels not in (3, None):
        raise UserError(
            f"{name} takes {channels} channels in layout {card.layout}; images have 3. If it takes them in the other "
            "layout, say so in its preprocessing card"
        )
    wrong = [side for side in sides if side not in (card.size, None)]
    if wrong and sides[0] != sides[1]:
        raise UserError(f"{name} takes images of {sides[0]} × {sides[1]} pixels; they must be square")
    if wrong:
        raise UserError(
            f"{name} takes images of {wrong[0]} pixels, its preprocessing card says {card.size}; correct it"
        )


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
