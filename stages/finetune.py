"""finetune: pretrained networks → networks refined with group concordance (ConNR)."""

import hashlib

from conr.data.store import open_store
from conr.parameters import FinetuneStage
from conr.progress import Progress
from conr.training.checkpoints import load_weights, save_weights
from conr.training.group import finetune
from conr.training.log import read_log, write_log
from stages.paths import FINETUNE_LOG, FINETUNED, PRETRAIN_LOG, PRETRAINED, STORE
from stages.scratch import checkpoint_of


def run(parameters: FinetuneStage, progress: Progress) -> str:
    """Refine the pretrained networks, or go on where the same run was interrupted; returns the summary."""
    store = open_store(STORE)
    model, description = load_weights(PRETRAINED)
    first_epoch = len(read_log(PRETRAIN_LOG))
    weights = hashlib.sha256(PRETRAINED.read_bytes()).hexdigest()
    checkpoint = checkpoint_of("finetune", parameters.model_dump(), store.manifest.checksum, weights)
    log = finetune(model, store.images, store.labels, parameters, first_epoch, checkpoint, progress)
    save_weights(FINETUNED, model, description)
    write_log(FINETUNE_LOG, log)
    checkpoint.remove()
    last = log[-1]
    return (
        f"{len(log)} epochs of ConNR, loss {log[0]['loss']:.3f} → {last['loss']:.3f}, "
        f"cluster sizes {last['cluster_sizes']}; weights in {FINETUNED}"
    )
