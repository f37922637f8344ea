"""conr pretrain."""

from conr.embedding.engines.settings import Engine
from conr.observer import Observer
from conr.parameters import PretrainStage
from conr.pipeline.frozen import embed_frozen_share
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace
from conr.training.launcher import under_torchrun


@under_torchrun
def run(workspace: Workspace, parameters: PretrainStage, engine: Engine, observer: Observer) -> str:
    """Train, or resume; of a frozen backbone take the features, or a share of them. Returns the summary."""
    if engine.is_share:
        folder = embed_frozen_share(workspace, parameters, engine, observer)
        return f"share {engine.shard} is in {folder}; run conr pretrain after all of them"
    log = pretrain(workspace, parameters, observer, engine)
    if not log:
        return f"features by {parameters.network.backbone}, which stays as it is, in {workspace.pretrained.folder}"
    losses = f"{log[0]['loss']:.3f} → {log[-1]['loss']:.3f}"
    return f"{len(log)} epochs of {parameters.framework.name}, loss {losses}; weights in {workspace.pretrained.weights}"
