"""extract: networks → one ONNX file, and the embeddings of the whole store before and after ConNR.

All of them in the same precision, so that before and after can be compared.
"""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.export import embed, export, open_session
from conr.files import sha256_of
from conr.parameters import ExtractStage
from conr.progress import Progress
from conr.quantisation import quantise
from conr.training.checkpoints import load_weights
from stages.paths import (
    EMBEDDED,
    EMBEDDINGS,
    ENCODER,
    FINETUNED,
    FURTHER_EMBEDDINGS,
    FURTHER_SEEDS,
    PRETRAINED,
    PRETRAINED_EMBEDDINGS,
    SEEDS,
    STORE,
)


def run(parameters: ExtractStage, progress: Progress) -> str:
    """Embed all images with every target network, through ONNX; keep the encoder of the first seed.

    Returns the summary.
    """
    store = open_store(STORE)
    _, *further = seeds = _seeds()
    passing = {PRETRAINED: PRETRAINED_EMBEDDINGS}
    for seed in further:
        passing[FURTHER_SEEDS / str(seed) / FINETUNED.name] = FURTHER_EMBEDDINGS / f"{seed}.npy"
    shutil.rmtree(FURTHER_EMBEDDINGS, ignore_errors=True)  # of an earlier run with other seeds
    with TemporaryDirectory() as folder:
        for weights, embeddings in passing.items():
            scratch = Path(folder) / "encoder.onnx"
            _export_and_embed(store, weights, scratch, embeddings, parameters, progress)
    checked = _export_and_embed(store, FINETUNED, ENCODER, EMBEDDINGS, parameters, progress)
    made = {"seeds": seeds, "precision": parameters.extract.precision, "encoder": sha256_of(ENCODER)}
    EMBEDDED.write_text(json.dumps(made))
    return f"encoder in {ENCODER}, {checked}; {store.manifest.count:,} embeddings in {EMBEDDINGS}"


def _seeds() -> list[int]:
    try:
        seeds: list[int] = json.loads(SEEDS.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{SEEDS} is missing or not whole ({error}); run conr finetune first") from error
    return seeds


def _export_and_embed(
    store: Store, weights: Path, encoder: Path, embeddings: Path, parameters: ExtractStage, progress: Progress
) -> str:
    """Returns what the encoder was found to equal."""
    checked = _export(store, weights, encoder, parameters.extract.precision, progress)
    EMBEDDED.unlink(missing_ok=True)  # until all embeddings are of this run, they are of none
    # A device that can train need not be one that onnxruntime has been built for.
    session = open_session(encoder, "cpu" if parameters.device == "cpu" else "auto")
    embed(session, store.images, embeddings, progress, f"embed {embeddings.stem}")
    return f"{checked}, run by {session.get_providers()[0]}"


def _export(store: Store, weights: Path, encoder: Path, precision: str, progress: Progress) -> str:
    model, _ = load_weights(weights)
    size = store.manifest.image_size
    facts = {"image_size": size, "fit": store.manifest.fit, "precision": "float32"}
    if precision == "float32":
        export(model.target, size, encoder, facts)
        return "equal to PyTorch's"
    with TemporaryDirectory() as folder:
        original = Path(folder) / "float32.onnx"
        export(model.target, size, original, facts)
        similarity = quantise(original, store.training_images, encoder, progress)
    return f"int8, mean cosine similarity {similarity:.4f} to float32, which equals PyTorch's"
