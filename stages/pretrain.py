"""conr pretrain."""

from conr.observer import Observer
from conr.parameters import PretrainStage
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace
from conr.training.launcher import under_torchrun


@under_torchrun
def run(workspace: Workspace, parameters: PretrainStage, observer: Observer) -> str:
    """Train, or resume; of a frozen backbone take the features. Returns the summary."""
    log = pretrain(workspace, parameters, observer)
    if not log:
        return f"features by {parameters.network.backbone}, which stays as it is, in {workspace.pretrained.folder}"
    losses = f"{log[0]['loss']:.3f} → {log[-1]['loss']:.3f}"
    return f"{len(log)} epochs of {parameters.framework.name}, loss {losses}; weights in {workspace.pretrained.weights}"
