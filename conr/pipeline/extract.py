"""extract: networks → one ONNX file, and the embeddings of the whole store before and after ConNR.

All of them in the same precision, so that before and after can be compared.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from conr.data.store import Store, open_store
from conr.embedding.appending import append_heads
from conr.embedding.bfloat16 import open_embedder
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.export import export
from conr.embedding.int8 import quantize
from conr.embedding.session import Properties, properties
from conr.files import copy_whole, load_array, save_array, sha256_of
from conr.models.cluster_heads import load_head
from conr.observer import SILENT, Observer
from conr.parameters import ExtractStage
from conr.pipeline.embedding import StoreEmbedding
from conr.pipeline.records import identity, of_embeddings, read_record, write_record
from conr.pipeline.workspace import TrainingFiles, Workspace, writes
from conr.training.weights import load_weights


@dataclass(frozen=True)
class Extracted:
    """The result for the first seed's network.

    Attributes:
        images: how many were embedded.
        similarity: mean cosine similarity of an int8 encoder's embeddings to those in float32; None of others.
        precision: number format that the embeddings were computed in.
        provider: what ran it.
    """

    images: int
    similarity: float | None
    precision: str
    provider: str


@writes
def extract(
    workspace: Workspace, parameters: ExtractStage, observer: Observer = SILENT, engine: Engine = LOCAL
) -> Extracted:
    """Embed all images with every target network, through ONNX; keep the encoder of the first seed.

    Raises:
        UserError: store or weights are missing or damaged, an encoder differs from its network, or the engine cannot
            be used.
    """
    parameters, store = ExtractStage.of(parameters), open_store(workspace.store)
    first, *further = seeds = _seeds(workspace, store)
    embedding = StoreEmbedding(workspace, store, parameters.device, engine, observer)
    shutil.rmtree(workspace.embedded, ignore_errors=True)  # of an earlier run, perhaps with other seeds
    with TemporaryDirectory() as folder:
        for seed in (None, *further):
            _encode(embedding, seed, Path(folder) / "encoder.onnx", parameters)
    extracted = _encode(embedding, first, encoder := workspace.encoder, parameters)
    made = [workspace.embeddings(), *map(workspace.embeddings, seeds)]
    made_from = {**of_embeddings(workspace, store.manifest, first), "encoder": sha256_of(encoder)}
    write_record(workspace.embedded, made, seeds, made_from, extracted.precision)
    embedding.remove_shards()
    return extracted


def extract_share(
    workspace: Workspace, parameters: ExtractStage, engine: Engine, observer: Observer = SILENT
) -> list[Path]:
    """Embed a share of the images with every network, into shards that `extract` uses; other shares may run beside it.

    Returns:
        The folders of shards; none where all embeddings follow from those of a frozen backbone.

    Raises:
        UserError: as in `extract`.
    """
    parameters, store = ExtractStage.of(parameters), open_store(workspace.store)
    embedding = StoreEmbedding(workspace, store, parameters.device, engine, observer)
    with TemporaryDirectory() as folder:
        for seed in (None, *_seeds(workspace, store)):
            if _is_embedded(workspace, seed, parameters):
                _write_encoder(embedding, seed, encoder := Path(folder) / "encoder.onnx", parameters)
                embedding.write(encoder, None, f"embed {workspace.embeddings(seed).stem}")
    return embedding.folders


def _seeds(workspace: Workspace, store: Store) -> list[int]:
    made_from = {"store": store.manifest.training_identity, "pretrained": identity(workspace.pretrained.network)}
    return read_record(workspace.refined, "run conr finetune again", made_from).seeds


def _is_refined(workspace: Workspace, seed: int | None) -> bool:
    return seed is not None and workspace.finetuned(seed).weights.exists()


def _is_embedded(workspace: Workspace, seed: int | None, parameters: ExtractStage) -> bool:
    """Whether a network sees all images: not where features of a frozen one are there, or nothing was refined."""
    known = workspace.pretrained.is_frozen and parameters.extract.precision == "float32"
    return not known and (seed is None or _is_refined(workspace, seed))


def _files(workspace: Workspace, seed: int | None) -> TrainingFiles:
    return workspace.finetuned(seed) if seed is not None and _is_refined(workspace, seed) else workspace.pretrained


def _encode(embedding: StoreEmbedding, seed: int | None, encoder: Path, parameters: ExtractStage) -> Extracted:
    """Export what embeds the images before ConNR, or after it with a seed, and write the embeddings."""
    workspace, frozen = embedding.workspace, embedding.workspace.pretrained
    files, embeddings = _files(workspace, seed), workspace.embeddings(seed)
    similarity = _write_encoder(embedding, seed, encoder, parameters)
    if _is_embedded(workspace, seed, parameters):
        embedding.write(encoder, embeddings, f"embed {embeddings.stem}")
    elif seed is not None and not _is_refined(workspace, seed):  # the same features once more
        copy_whole(workspace.embeddings(), embeddings)
    elif files.is_frozen:
        copy_whole(files.features, embeddings)
    else:
        features, head = load_array(frozen.features, "run conr pretrain again"), load_head(files.weights)
        save_array(embeddings, head.embed(features))
    session = open_embedder(encoder, embedding.own_device)
    precision, provider = properties(session).precision, session.get_providers()[0]
    return Extracted(embedding.store.manifest.count, similarity, precision, provider)


def _write_encoder(
    embedding: StoreEmbedding, seed: int | None, encoder: Path, parameters: ExtractStage
) -> float | None:
    """Write the ONNX file; of an int8 one returns the mean cosine similarity to float32."""
    workspace, store = embedding.workspace, embedding.store
    files = _files(workspace, seed)
    if parameters.extract.precision == "float32":
        _export(workspace, store, files, encoder)
        return None
    with TemporaryDirectory() as folder:
        original = Path(folder) / "float32.onnx"
        _export(workspace, store, files, original)
        return quantize(original, store.training_images, encoder, embedding.observer)


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
