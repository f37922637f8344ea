"""conr evaluate."""

from conr.observer import Observer
from conr.parameters import EvaluateStage
from conr.pipeline.evaluate import evaluate
from conr.pipeline.workspace import Workspace


def run(workspace: Workspace, parameters: EvaluateStage, observer: Observer) -> str:
    """Cluster, score and draw; returns the summary."""
    evaluate(workspace, parameters, observer)
    return "\n" + workspace.summary.read_text(encoding="utf-8").rstrip()
