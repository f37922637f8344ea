"""extract: networks → one ONNX file, and the embeddings of the whole store before and after ConNR.

All of them in the same precision, so that before and after can be compared.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from conr.data.store import Store, open_store
from conr.embedding.appending import append_heads
from conr.embedding.export import export
from conr.embedding.int8 import quantize
from conr.embedding.session import Properties, embed, open_session
from conr.files import copy_whole, load_array, save_array, sha256_of
from conr.models.cluster_heads import load_head
from conr.observer import SILENT, Observer
from conr.parameters import ExtractStage
from conr.pipeline.records import identity, of_embeddings, read_record, write_record
from conr.pipeline.workspace import TrainingFiles, Workspace, writes
from conr.training.weights import load_weights


@dataclass(frozen=True)
class Extracted:
    """The result for the first seed's network.

    Attributes:
        images: how many were embedded.
        similarity: mean cosine similarity of an int8 encoder's embeddings to those in float32; None in float32.
        provider: what onnxruntime ran it with.
    """

    images: int
    similarity: float | None
    provider: str


@writes
def extract(workspace: Workspace, parameters: ExtractStage, observer: Observer = SILENT) -> Extracted:
    """Embed all images with every target network, through ONNX; keep the encoder of the first seed.

    Raises:
        UserError: store or weights are missing or damaged, or an encoder differs from its network.
    """
    parameters, store = ExtractStage.of(parameters), open_store(workspace.store)
    made_from = {"store": store.manifest.training_identity, "pretrained": identity(workspace.pretrained.network)}
    first, *further = seeds = read_record(workspace.refined, "run conr finetune again", made_from).seeds
    shutil.rmtree(workspace.embedded, ignore_errors=True)  # of an earlier run, perhaps with other seeds
    with TemporaryDirectory() as folder:
        for seed in (None, *further):
            _encode(workspace, store, seed, Path(folder) / "encoder.onnx", parameters, observer)
    extracted = _encode(workspace, store, first, encoder := workspace.encoder, parameters, observer)
    made = [workspace.embeddings(), *map(workspace.embeddings, seeds)]
    made_from = {**of_embeddings(workspace, store.manifest, first), "encoder": sha256_of(encoder)}
    write_record(workspace.embedded, made, seeds, made_from, parameters.extract.precision)
    return extracted


def _encode(
    workspace: Workspace, store: Store, seed: int | None, encoder: Path, parameters: ExtractStage, observer: Observer
) -> Extracted:
    """Export what embeds the images before ConNR, or after it with a seed, and write the embeddings."""
    embeddings, precision, frozen = workspace.embeddings(seed), parameters.extract.precision, workspace.pretrained
    refined = seed is not None and workspace.finetuned(seed).weights.exists()
    files = workspace.finetuned(seed) if seed is not None and refined else workspace.pretrained
    similarity = None
    if precision == "float32":
        _export(workspace, store, files, encoder)
    else:
        with TemporaryDirectory() as folder:
            original = Path(folder) / "float32.onnx"
            _export(workspace, store, files, original)
            similarity = quantize(original, store.training_images, encoder, observer)
    # A device that can train need not be one that onnxruntime has been built for.
    session = open_session(encoder, "cpu" if parameters.device == "cpu" else "auto")
    if seed is not None and not refined:  # the same features once more
        copy_whole(workspace.embeddings(), embeddings)
    elif files.is_frozen and precision == "float32":
        copy_whole(files.features, embeddings)
    elif frozen.is_frozen and precision == "float32":
        features, head = load_array(frozen.features, "run conr pretrain again"), load_head(files.weights)
        save_array(embeddings, head.embed(features))
    else:
        embed(session, store.images, embeddings, observer, f"embed {embeddings.stem}")
    return Extracted(store.manifest.count, similarity, session.get_providers()[0])


def _export(workspace: Workspace, store: Store, files: TrainingFiles, encoder: Path) -> None:
    frozen = workspace.pretrained
    if files.is_frozen:
        copy_whole(files.encoder, encoder)
        return
    if frozen.is_frozen:
        head = load_head(files.weights)
        facts = Properties(image_size=store.manifest.image_size, fit=store.manifest.fit)
        append_heads(frozen.encoder, head.prototypes.numpy(), head.spec.temperature, encoder, facts)
        return
    model, _, _ = load_weights(files.weights)
    size = store.manifest.image_size
    export(model.target, size, encoder, Properties(image_size=size, fit=store.manifest.fit))
