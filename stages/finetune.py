"""conr finetune."""

from conr.observer import Observer
from conr.parameters import FinetuneStage
from conr.pipeline.finetune import finetune
from conr.pipeline.settle import settled
from conr.pipeline.workspace import Workspace
from conr.refinement.objective import MOVING
from conr.training.launcher import under_torchrun


@under_torchrun
def run(workspace: Workspace, parameters: FinetuneStage, observer: Observer) -> str:
    """Refine the pretrained networks, or resume; returns the summary, one line per seed."""
    logs = finetune(workspace, parameters, observer)
    lines = []
    if isinstance(parameters.clusters, str):
        why = f" proposed; why is in {workspace.proposal}" if workspace.proposal.exists() else ""
        lines.append(f"{settled(workspace, parameters).clusters} clusters{why}")
    if parameters.finetune.epochs == 0:
        return "\n".join([*lines, "finetune.epochs = 0: the features stay as they are"])
    return "\n".join(
        lines
        + [
            f"{_epochs(len(log), parameters)} of ConNR, loss {log[0]['loss']:.3f} → {log[-1]['loss']:.3f}, cluster "
            f"sizes {log[-1]['cluster_sizes']}; weights in {workspace.finetuned(seed).weights}"
            for seed, log in logs.items()
        ]
    )


def _epochs(trained: int, parameters: FinetuneStage) -> str:
    settings = parameters.finetune
    if trained == settings.epochs:
        return f"{trained} epochs"
    return (
        f"{trained} of {settings.epochs} epochs (finetune.patience = {settings.patience}: fewer than {MOVING:.1%} of "
        "the images changed their cluster in each of the last ones)"
    )
