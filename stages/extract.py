"""conr extract."""

from conr.embedding.engines.settings import Engine
from conr.observer import Observer
from conr.parameters import ExtractStage
from conr.pipeline.extract import extract, extract_share
from conr.pipeline.workspace import Workspace


def run(workspace: Workspace, parameters: ExtractStage, engine: Engine, observer: Observer) -> str:
    """Export the encoder and embed all images, or a share of them; returns the summary."""
    if engine.is_share:
        folders = extract_share(workspace, parameters, engine, observer)
        if not folders:
            return "nothing to share: all embeddings follow from the features of conr pretrain"
        return f"share {engine.shard} is in {', '.join(map(str, folders))}; run conr extract after all of them"
    done = extract(workspace, parameters, observer, engine)
    checked = "equal to PyTorch's"
    if done.precision == "bfloat16":
        checked = "in bfloat16"
    if done.similarity is not None:
        checked = f"int8, mean cosine similarity {done.similarity:.4f} to float32, which equals PyTorch's"
    return (
        f"encoder in {workspace.encoder}, {checked}, run by {done.provider}; {done.images:,} embeddings in "
        f"{workspace.embedded}"
    )
