"""pretrain: the store → networks trained with instance concordance (BYOL)."""

import torch

from conr.data.store import open_store
from conr.networks import Siamese, network_from
from conr.parameters import PretrainStage
from conr.progress import Progress
from conr.training.checkpoints import save_weights
from conr.training.instance import pretrain
from conr.training.log import write_log
from stages.paths import PRETRAIN_LOG, PRETRAINED, STORE
from stages.scratch import checkpoint_of


def run(parameters: PretrainStage, progress: Progress) -> str:
    """Train from scratch, or go on where the same run was interrupted; returns the summary."""
    store = open_store(STORE)
    shape = parameters.network
    description = {**shape.model_dump(), "mean": store.manifest.mean, "std": store.manifest.std}
    torch.manual_seed(parameters.seed)
    model = Siamese(network_from(description), shape.hidden, shape.dimension)
    checkpoint = checkpoint_of("pretrain", parameters.model_dump(), store.manifest.checksum)
    log = pretrain(model, store.images, store.labels, parameters, checkpoint, progress)
    save_weights(PRETRAINED, model, description)
    write_log(PRETRAIN_LOG, log)
    checkpoint.remove()
    return f"{len(log)} epochs of BYOL, loss {log[0]['loss']:.3f} → {log[-1]['loss']:.3f}; weights in {PRETRAINED}"
