"""extract: networks → one ONNX file, and the embeddings of the whole store before and after ConNR."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.export import embed, export, open_session
from conr.parameters import ExtractStage
from conr.progress import Progress
from conr.training.checkpoints import load_weights
from stages.paths import (
    EMBEDDED_SEEDS,
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
    _, *further = _seeds()
    passing = {PRETRAINED: PRETRAINED_EMBEDDINGS}
    for seed in further:
        passing[FURTHER_SEEDS / str(seed) / FINETUNED.name] = FURTHER_EMBEDDINGS / f"{seed}.npy"
    shutil.rmtree(FURTHER_EMBEDDINGS, ignore_errors=True)  # of an earlier run with other seeds
    with TemporaryDirectory() as folder:
        for weights, embeddings in passing.items():
            scratch = Path(folder) / "encoder.onnx"
            _export_and_embed(store, weights, scratch, embeddings, parameters.device, progress)
    _export_and_embed(store, FINETUNED, ENCODER, EMBEDDINGS, parameters.device, progress)
    shutil.copy(SEEDS, EMBEDDED_SEEDS)
    return f"encoder in {ENCODER}, equal to PyTorch's; {store.manifest.count:,} embeddings in {EMBEDDINGS}"


def _seeds() -> list[int]:
    try:
        seeds: list[int] = json.loads(SEEDS.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{SEEDS} is missing or not whole ({error}); run conr finetune first") from error
    return seeds


def _export_and_embed(
    store: Store, weights: Path, encoder: Path, embeddings: Path, device: str, progress: Progress
) -> None:
    model, _ = load_weights(weights)
    size = store.manifest.image_size
    export(model.target, size, encoder, {"image_size": size, "fit": store.manifest.fit})
    embed(open_session(encoder, device), store.images, embeddings, progress, f"embed {embeddings.stem}")
