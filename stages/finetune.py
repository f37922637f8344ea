"""conr finetune."""

from conr.observer import Observer
from conr.parameters import FinetuneStage
from conr.pipeline.finetune import finetune
from conr.pipeline.workspace import Workspace


def run(workspace: Workspace, parameters: FinetuneStage, observer: Observer) -> str:
    """Refine the pretrained networks, or resume; returns the summary, one line per seed."""
    return "\n".join(
        f"{len(log)} epochs of ConNR, loss {log[0]['loss']:.3f} → {log[-1]['loss']:.3f}, cluster sizes "
        f"{log[-1]['cluster_sizes']}; weights in {workspace.finetuned(seed).weights}"
        for seed, log in finetune(workspace, parameters, observer).items()
    )
