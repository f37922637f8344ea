"""finetune: pretrained networks → networks refined with group concordance (ConNR), once for each seed."""

import json
import shutil
from pathlib import Path
from typing import Any

from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.files import sha256_of
from conr.networks import Siamese
from conr.parameters import FinetuneStage
from conr.progress import Progress
from conr.training.checkpoints import Checkpoint, load_weights, save_weights
from conr.training.group import finetune
from conr.training.log import Row, read_log, write_log
from stages.paths import FINETUNE_LOG, FINETUNED, FURTHER_SEEDS, PRETRAIN_LOG, PRETRAINED, SEEDS, STORE
from stages.scratch import checkpoint_of


def run(parameters: FinetuneStage, progress: Progress) -> str:
    """Refine the pretrained networks, or go on where the same run was interrupted; returns the summary."""
    store = open_store(STORE)
    first, *further = parameters.seeds or [parameters.seed]
    _pretrained(parameters)  # refused before anything of an earlier run is removed
    shutil.rmtree(FURTHER_SEEDS, ignore_errors=True)  # of an earlier run with other seeds
    FURTHER_SEEDS.mkdir(parents=True)
    places = {first: (FINETUNED, FINETUNE_LOG)}
    places |= {seed: further_paths(seed) for seed in further}
    # Removed together: DVC deletes the weights of the first seed when the stage is run again for the second.
    checkpoints, lines = [], []
    for seed, (weights, log) in places.items():
        checkpoint, rows = _one_seed(parameters, seed, store, weights, progress)
        write_log(log, rows)
        checkpoints.append(checkpoint)
        last = rows[-1]
        lines.append(
            f"{len(rows)} epochs of ConNR, loss {rows[0]['loss']:.3f} → {last['loss']:.3f}, "
            f"cluster sizes {last['cluster_sizes']}; weights in {weights}"
        )
    SEEDS.write_text(json.dumps(list(places)))  # last: the sign that all weights are of this run
    for checkpoint in checkpoints:
        checkpoint.remove()
    return "\n".join(lines)


def further_paths(seed: int) -> tuple[Path, Path]:
    """Weights and log of a seed after the first."""
    return FURTHER_SEEDS / str(seed) / "weights.safetensors", FURTHER_SEEDS / str(seed) / "log.csv"


def _one_seed(
    parameters: FinetuneStage, seed: int, store: Store, weights: Path, progress: Progress
) -> tuple[Checkpoint, list[Row]]:
    alone = parameters.model_copy(update={"seed": seed, "seeds": []})
    model, description = _pretrained(parameters)
    checkpoint = checkpoint_of("finetune", alone.model_dump(), store.training_identity, sha256_of(PRETRAINED))
    first_epoch = len(read_log(PRETRAIN_LOG))
    name = f"finetune, seed {seed}" if parameters.seeds else "finetune"
    images, labels = store.training_images, store.training_labels
    rows = finetune(model, images, labels, alone, first_epoch, checkpoint, progress, name)
    save_weights(weights, model, description)
    return checkpoint, rows


def _pretrained(parameters: FinetuneStage) -> tuple[Siamese, dict[str, Any]]:
    """The networks to start from, and the description that they are built from."""
    model, description = load_weights(PRETRAINED)
    if description["framework"] != parameters.host.framework:
        raise UserError(
            f"{PRETRAINED} was trained with host.framework = {description['framework']}, not "
            f"{parameters.host.framework}; run conr pretrain again, or set host.framework back"
        )
    return model, description
