"""conr pretrain."""

from conr.observer import Observer
from conr.parameters import PretrainStage
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace


def run(workspace: Workspace, parameters: PretrainStage, observer: Observer) -> str:
    """Train from scratch, or resume; returns the summary."""
    log = pretrain(workspace, parameters, observer)
    losses = f"{log[0]['loss']:.3f} → {log[-1]['loss']:.3f}"
    return f"{len(log)} epochs of {parameters.framework.name}, loss {losses}; weights in {workspace.pretrained.weights}"
