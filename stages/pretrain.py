"""pretrain: the store → networks trained with instance concordance (BYOL)."""

from typing import Any

import torch

from conr.data.store import Manifest, open_store
from conr.networks import Siamese
from conr.parameters import PretrainStage
from conr.progress import Progress
from conr.training.checkpoints import save_weights
from conr.training.instance import pretrain
from conr.training.log import write_log
from conr.training.model import build
from stages.paths import PRETRAIN_LOG, PRETRAINED, STORE
from stages.scratch import checkpoint_of


def run(parameters: PretrainStage, progress: Progress) -> str:
    """Train from scratch, or go on where the same run was interrupted; returns the summary."""
    store = open_store(STORE)
    model, description = fresh_model(parameters, store.manifest)
    checkpoint = checkpoint_of("pretrain", parameters.model_dump(), store.training_identity)
    log = pretrain(model, store.training_images, store.training_labels, parameters, checkpoint, progress)
    save_weights(PRETRAINED, model, description)
    write_log(PRETRAIN_LOG, log)
    checkpoint.remove()
    framework, losses = parameters.host.framework, f"{log[0]['loss']:.3f} → {log[-1]['loss']:.3f}"
    return f"{len(log)} epochs of {framework}, loss {losses}; weights in {PRETRAINED}"


def fresh_model(parameters: PretrainStage, manifest: Manifest) -> tuple[Siamese, dict[str, Any]]:
    """Initialised networks for a store, and their description."""
    description = {
        **parameters.network.model_dump(),
        "framework": parameters.host.framework,
        "mean": manifest.mean,
        "std": manifest.std,
    }
    torch.manual_seed(parameters.seed)
    return build(description), description
