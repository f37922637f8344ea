"""conr extract."""

from conr.observer import Observer
from conr.parameters import ExtractStage
from conr.pipeline.extract import extract
from conr.pipeline.workspace import Workspace


def run(workspace: Workspace, parameters: ExtractStage, observer: Observer) -> str:
    """Export the encoder and embed all images; returns the summary."""
    done = extract(workspace, parameters, observer)
    checked = "equal to PyTorch's"
    if done.similarity is not None:
        checked = f"int8, mean cosine similarity {done.similarity:.4f} to float32, which equals PyTorch's"
    return (
        f"encoder in {workspace.encoder}, {checked}, run by {done.provider}; {done.images:,} embeddings in "
        f"{workspace.embedded}"
    )
