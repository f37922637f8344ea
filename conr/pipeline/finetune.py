"""finetune: pretrained networks → networks refined with group concordance (ConNR), once for each seed."""

import shutil
from contextlib import ExitStack
from pathlib import Path

from conr.data.store import Store, open_store
from conr.errors import UserError
from conr.files import sha256_of
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.records import read_record, write_record
from conr.pipeline.workspace import Workspace, writes
from conr.refinement import objective
from conr.training.checkpoints import Checkpoint, fingerprint
from conr.training.log import Row, write_log
from conr.training.weights import ModelSpec, load_weights, save_weights


@writes
def finetune(workspace: Workspace, parameters: FinetuneStage, observer: Observer = SILENT) -> dict[int, list[Row]]:
    """Refine the pretrained networks, or resume where the same run was interrupted.

    Returns:
        The log of each seed, one row per epoch.

    Raises:
        UserError: store or pretrained networks are missing or do not fit the parameters, or the training diverges.
    """
    asked, store = FinetuneStage.of(parameters), open_store(workspace.store)
    check_data(asked, store.manifest)
    parameters = fit_batches(asked, store.manifest)
    pretrained = workspace.pretrained.weights
    _load_pretrained(pretrained, parameters, store)  # refused before anything of an earlier run is removed
    parent = sha256_of(pretrained)
    shutil.rmtree(workspace.refined, ignore_errors=True)  # of an earlier run, perhaps with other seeds
    # Removed after the last seed: DVC deletes the weights of the first seed when the stage is run again for the second.
    checkpoints, logs = [], {}
    with ExitStack() as held:
        for seed in parameters.all_seeds:
            own = parameters.model_copy(update={"seed": seed, "seeds": []})
            name = fingerprint("finetune", own.model_dump(), store.manifest.training_identity, parent)
            checkpoints.append(Checkpoint(held.enter_context(workspace.own_checkpoint(f"finetune-{name}"))))
            logs[seed] = _one_seed(workspace, own, store, checkpoints[-1], observer, named=bool(parameters.seeds))
        made_from = {"store": store.manifest.training_identity, "pretrained": parent}
        files = [workspace.finetuned(seed) for seed in logs]
        made = [path for of_seed in files for path in (of_seed.weights, of_seed.log)]
        write_record(workspace.refined, made, parameters.all_seeds, made_from, parameters=asked)
        for checkpoint in checkpoints:
            checkpoint.remove()
    return logs


def _one_seed(
    workspace: Workspace,
    parameters: FinetuneStage,
    store: Store,
    checkpoint: Checkpoint,
    observer: Observer,
    named: bool,
) -> list[Row]:
    model, spec, epochs = _load_pretrained(workspace.pretrained.weights, parameters, store)
    images, labels = store.training_images, store.training_labels
    name = f"finetune, seed {parameters.seed}" if named else "finetune"
    rows = objective.finetune(model, images, labels, parameters, epochs, checkpoint, observer, name)
    files = workspace.finetuned(parameters.seed)
    save_weights(files.weights, model, spec, epochs + len(rows))
    write_log(files.log, rows)
    return rows


def _load_pretrained(path: Path, parameters: FinetuneStage, store: Store) -> tuple[Siamese, ModelSpec, int]:
    """The networks to start from, what they are built from, and after how many epochs."""
    model, spec, epochs = load_weights(path)
    if spec.framework != parameters.framework.name:
        raise UserError(
            f"{path} was trained with framework.name = {spec.framework}, not {parameters.framework.name}; run conr "
            "pretrain again, or set framework.name back"
        )
    now = {"store": store.manifest.training_identity}
    read_record(path.parent, "run conr pretrain again", now)
    return model, spec, epochs
