"""clusterer.onnx: one file that sorts images into the clusters of a run, refused unless it does what conr does."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from conr.clustering.votes import Voters
from conr.embedding.clusterer import EMBEDDING, OUTPUTS, Memory, behind_embeddings, compose, opset_of
from conr.embedding.session import INPUT, OUTPUT, open_session
from conr.errors import UserError
from conr.evaluation.assignment import assign
from conr.files import atomic_file

KEY = "clusters"  # of the property that holds a `Card`
PROBES = 256  # stored embeddings that a file is checked on, at most
NEW = 128  # embeddings between stored ones, likewise
BATCH = 64  # each takes three numbers for every stored embedding
TOLERANCE = 1e-3  # of a confidence
CLOSE = 1e-5  # cosines that differ by less may be ranked either way
MOVES = 4  # directions in which embeddings are moved by so little: where ballots give the same, they are clear


class Card(BaseModel):
    """What the file says of its clusters, as JSON in its properties.

    Attributes:
        count: number of clusters K.
        method: kmeans (the nearest centroid) or graph (the votes of the nearest stored embeddings).
        clustering: which clustering it is (`conr.pipeline.naming.identity_of`).
        stored: number of embeddings in the file.
        names: number of a cluster → name, of those that have one.
    """

    model_config = ConfigDict(frozen=True)

    count: int
    method: str
    clustering: str
    stored: int
    names: dict[int, str] = {}


def write_clusterer(
    path: Path, encoder: Path, memory: Memory, clustering: str, names: Mapping[int, str] | None = None
) -> None:
    """Write encoder and clusters as one ONNX file, and compare it with conr's own assignment.

    It maps `images` (B, S, S, 3) uint8 to `cluster` (B,) int64, `confidence` and `novelty` (B,) float32 in [0, 1] and
    `embedding` (B, D) float32. The confidence is one minus the boundary ratio (Eq. 11), or of graph clusters the share
    of the votes; `Memory.novelty` has the formula of the novelty. The encoder's properties stay, a `Card` is added.

    Args:
        path: the .onnx file.
        encoder: the run's encoder.onnx.
        memory: of the run's clusters (`conr.embedding.clusterer.remember`).
        clustering: which clustering it is.
        names: those of clusters that have one.

    Raises:
        UserError: the encoder cannot be used, or the file computes something else; nothing is left under `path`.
    """
    session, model = open_session(encoder, "cpu"), onnx.load(encoder)
    merged = compose(model, memory)
    card = Card(
        count=len(memory.centroids),
        method="graph" if memory.by_votes else "kmeans",
        clustering=clustering,
        stored=len(memory.stored),
        names=dict(names or {}),
    )
    _set_card(merged, card)
    head = onnxruntime.InferenceSession(
        behind_embeddings(memory, opset_of(merged), merged.ir_version).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    _check_head(head, memory, path.name)
    with atomic_file(path) as temporary:
        temporary.write_bytes(merged.SerializeToString())
        _check_whole(open_session(temporary, "cpu"), session, head, path.name)


def rename_in_clusterer(path: Path, names: Mapping[int, str]) -> None:
    """Give the clusters in a file that `write_clusterer` wrote these names, and no others."""
    model = onnx.load(path)
    text = next(entry.value for entry in model.metadata_props if entry.key == KEY)
    _set_card(model, Card.model_validate_json(text).model_copy(update={"names": dict(names)}))
    with atomic_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _set_card(model: onnx.ModelProto, card: Card) -> None:
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**properties, KEY: card.model_dump_json()})


def _check_head(head: onnxruntime.InferenceSession, memory: Memory, name: str) -> None:
    """Compare what follows the embeddings with conr's own assignment, on stored embeddings and on some between them."""
    generator = np.random.default_rng(0)
    known = memory.stored[np.sort(generator.permutation(len(memory.stored))[:PROBES])]
    between = known[generator.integers(0, len(known), (NEW, 2))].sum(1)
    between += generator.normal(size=between.shape).astype(np.float32) / np.float32(between.shape[1]) ** 0.5
    probes = np.concatenate([known, between / np.linalg.norm(between, axis=1, keepdims=True)])
    blocks = [
        head.run(OUTPUTS, {"embeddings": probes[first : first + BATCH]}) for first in range(0, len(probes), BATCH)
    ]
    clusters, confidence, novelty, _ = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    if memory.by_votes:
        voters = Voters(memory.stored, memory.clusters, len(memory.centroids), ballots=memory.ballots)
        expected, certain = voters.assign(probes)
        if memory.ballots is None:
            clear = certain > 0.5 + TOLERANCE  # else two clusters may have (nearly) as many votes
        else:
            clear = np.all([voters.assign(_moved(probes, seed))[0] == expected for seed in range(MOVES)], axis=0)
    else:
        assignment = assign(probes, memory.centroids)
        expected, certain = assignment.clusters, 1 - assignment.boundary_ratio
        clear = certain > CLOSE
    _refuse(name, "clusters", np.flatnonzero((clusters != expected) & clear))
    _refuse(name, "confidences", np.flatnonzero(~(np.abs(confidence - certain) <= TOLERANCE)))
    low, high = (memory.novelty(probes, margin) for margin in (CLOSE, -CLOSE))
    _refuse(name, "novelties", np.flatnonzero(~((low - CLOSE <= novelty) & (novelty <= high + CLOSE))))


def _moved(embeddings: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Unit vectors, moved by so little that they may have been rounded otherwise."""
    step = np.random.default_rng(seed).normal(size=embeddings.shape) * CLOSE
    moved = embeddings + step
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return moved.astype(np.float32)


def _check_whole(
    session: onnxruntime.InferenceSession,
    encoder: onnxruntime.InferenceSession,
    head: onnxruntime.InferenceSession,
    name: str,
) -> None:
    """Compare a file with its two parts, on random images."""
    size = session.get_inputs()[0].shape[1]
    for batch in (1, 3):
        images = np.random.default_rng(batch).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
        found = session.run(OUTPUTS, {INPUT: images})
        embeddings: NDArray[np.float32] = encoder.run([OUTPUT], {INPUT: images})[0]
        difference = np.abs(found[OUTPUTS.index(EMBEDDING)] - embeddings).max(1)
        _refuse(name, "embeddings", np.flatnonzero(~(difference <= CLOSE)))
        expected = head.run(OUTPUTS, {"embeddings": found[OUTPUTS.index(EMBEDDING)]})
        for output, values, others in zip(OUTPUTS, found, expected, strict=True):
            _refuse(name, output, np.flatnonzero(np.reshape(np.abs(values - others) > TOLERANCE, (batch, -1)).any(1)))


def _refuse(name: str, what: str, differing: NDArray[np.int64]) -> None:
    if len(differing):
        raise UserError(
            f"{name} does not assign as conr does: its {what} differ for {len(differing)} images that were tried. It "
            "is refused; another version of onnx or onnxruntime may compute it correctly"
        )
