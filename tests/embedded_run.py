"""A workspace in which everything before evaluate is there: images, encoder, given embeddings, logs of a training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from project import tiny

from conr.data.sources import array_source
from conr.data.store import load_manifest
from conr.embedding.session import INPUT, OUTPUT, Properties
from conr.files import save_array, write_text
from conr.observer import SILENT
from conr.parameters import Parameters
from conr.pipeline.prepare import prepare
from conr.pipeline.records import of_embeddings, write_record
from conr.pipeline.workspace import Workspace
from conr.training.log import write_log

SIZE = 8
PARAMETERS: dict[str, Any] = {"clusters": 3, "k": 4, "k1": 4, "evaluate.context": 12}


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def groups(sizes: Sequence[int], noise: float = 0.0, dimension: int = 16) -> NDArray[np.float32]:
    """Unit vectors around so many axes."""
    rows = np.eye(dimension)[np.repeat(np.arange(len(sizes)), sizes)]
    return unit(rows + noise * np.random.default_rng(0).normal(size=rows.shape))


def write_encoder(path: Path, dimension: int) -> None:
    """An encoder for images of that size that knows nothing of the embeddings: a random projection of the pixels."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 18]>
        encoder (uint8[batch, {SIZE}, {SIZE}, 3] {INPUT}) => (float[batch, {dimension}] {OUTPUT}) {{
            flat = Flatten ({INPUT})
            pixels = Cast <to = 1> (flat)
            rows = MatMul (pixels, weights)
            {OUTPUT} = LpNormalization <axis = 1, p = 2> (rows)
        }}
    """)
    weights = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, dimension)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.helper.set_model_props(model, {"conr": Properties(image_size=SIZE, fit="crop").model_dump_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def embedded(
    folder: Path,
    embeddings: NDArray[np.float32],
    labels: Sequence[object] | None = None,
    files: Sequence[str] | None = None,
    changes: dict[str, Any] | None = None,
) -> tuple[Workspace, Parameters]:
    """Write images, embeddings and logs; returns what `conr.pipeline.evaluate` takes."""
    workspace, parameters = Workspace.at(folder), tiny({**PARAMETERS, **(changes or {})})
    pixels = np.random.default_rng(0).integers(0, 256, (len(embeddings), SIZE, SIZE, 3), dtype=np.uint8)
    source = array_source(pixels, labels, SIZE)
    if files is not None:
        items = [replace(item, file=file) for item, file in zip(source.items, files, strict=True)]
        source = replace(source, items=items)
    prepare(workspace, parameters, SILENT, source)
    for trained in (workspace.pretrained, workspace.finetuned(0)):
        write_text(trained.weights, "of no consequence")
    write_encoder(workspace.encoder, embeddings.shape[1])
    paths = [workspace.embeddings(), workspace.embeddings(0)]
    for path in paths:
        save_array(path, embeddings)
    made_from = of_embeddings(workspace, load_manifest(workspace.store), 0) | {"encoder": ""}
    write_record(workspace.embedded, paths, [0], made_from, "float32")
    for log in (workspace.pretrained.log, workspace.finetuned(0).log):
        write_log(log, [{"epoch": 1, "loss": 1.0}])
    return workspace, parameters
