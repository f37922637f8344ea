"""finetune: pretrained networks → networks refined with group concordance (ConNR), once for each seed.

It also settles the number of clusters, of which group concordance makes use.
"""

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conr.data.store import Store, open_same_store, open_store
from conr.errors import UserError
from conr.files import load_array, sha256_of
from conr.models.cluster_heads import save_head
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import FinetuneStage
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.records import NO_OTHER_RUN, read_record, write_record
from conr.pipeline.settle import settle
from conr.pipeline.workspace import Workspace, writes
from conr.refinement import objective
from conr.refinement.heads import HeadSettings, refine_heads
from conr.training.checkpoints import Checkpoint, fingerprint
from conr.training.compute import Compute
from conr.training.launcher import choose_processes, train_together
from conr.training.log import Row, write_log
from conr.training.objective import Context
from conr.training.threads import training_threads
from conr.training.weights import ModelSpec, load_weights, save_weights

AGAIN = "run conr pretrain again"


@writes
def finetune(workspace: Workspace, parameters: FinetuneStage, observer: Observer = SILENT) -> dict[int, list[Row]]:
    """Settle the number of clusters and refine the pretrained networks, or resume where the same run was interrupted.

    Returns:
        The log of each seed, one row per epoch.

    Raises:
        UserError: store or pretrained networks are missing or do not fit the parameters, or the training diverges.
    """
    asked, store = FinetuneStage.of(parameters), open_store(workspace.store)
    check_data(asked, store.manifest)
    _check_pretrained(workspace, asked, store)  # refused before anything of an earlier run is removed
    parent = sha256_of(workspace.pretrained.network)
    shutil.rmtree(workspace.refined, ignore_errors=True)  # of an earlier run, perhaps with other seeds
    parameters = settle(workspace, asked, lambda: _features(workspace, asked, store), observer)
    if parameters.finetune.epochs and not workspace.pretrained.is_frozen:
        parameters = fit_batches(parameters, store.manifest)
    # Removed after the last seed: DVC deletes the weights of the first seed when the stage is run again for the second.
    checkpoints: list[Checkpoint] = []
    logs: dict[int, list[Row]] = {seed: [] for seed in parameters.all_seeds}
    made = [workspace.proposal] if workspace.proposal.exists() else []
    with ExitStack() as held:
        for seed in logs if parameters.finetune.epochs else ():
            own = parameters.model_copy(update={"seed": seed, "seeds": []})
            identity = store.manifest.training_identity
            name = fingerprint("finetune", own.model_dump(exclude=NO_OTHER_RUN), identity, parent)
            checkpoints.append(Checkpoint(held.enter_context(workspace.own_checkpoint(f"finetune-{name}"))))
            train = _train_heads if workspace.pretrained.is_frozen else _train_networks
            logs[seed] = train(workspace, own, store, checkpoints[-1], observer, named=bool(parameters.seeds))
            made += [workspace.finetuned(seed).weights, workspace.finetuned(seed).log]
        made_from = {"store": store.manifest.training_identity, "pretrained": parent}
        seeds, clusters = parameters.all_seeds, parameters.number
        write_record(workspace.refined, made, seeds, made_from, parameters=asked, clusters=clusters)
        for checkpoint in checkpoints:
            checkpoint.remove()
    return logs


def _train_networks(
    workspace: Workspace,
    parameters: FinetuneStage,
    store: Store,
    checkpoint: Checkpoint,
    observer: Observer,
    named: bool,
) -> list[Row]:
    weights, identity = workspace.pretrained.weights, store.manifest.training_identity
    spec = _load_pretrained(weights, parameters)[1]
    device, size = Compute.choose(parameters.device, parameters.precision).device, parameters.finetune.batch_size
    processes = choose_processes(parameters.training.processes, device, "finetune", size, spec.bn_group)
    name = f"finetune, seed {parameters.seed}" if named else "finetune"
    job = partial(_refine, workspace.store, identity, weights, parameters, checkpoint, name)
    with training_threads(parameters.training.threads, device, checkpoint.folder):
        model, epochs, rows = train_together(job, processes, observer)
    files = workspace.finetuned(parameters.seed)
    save_weights(files.weights, model, spec, epochs + len(rows))
    write_log(files.log, rows)
    return rows


def _refine(
    folder: Path,
    identity: str,
    weights: Path,
    parameters: FinetuneStage,
    checkpoint: Checkpoint,
    name: str,
    observer: Observer,
) -> tuple[Siamese, int, list[Row]]:
    """Refine networks on a store, which must be the one of that identity: what each of several processes does.

    Returns:
        The networks, the epochs of their pretraining, and the log.
    """
    store, (model, _, epochs) = open_same_store(folder, identity), _load_pretrained(weights, parameters)
    images, labels = store.training_images, store.training_labels
    return model, epochs, objective.finetune(model, images, labels, parameters, epochs, checkpoint, observer, name)


def _train_heads(
    workspace: Workspace,
    parameters: FinetuneStage,
    store: Store,
    checkpoint: Checkpoint,
    observer: Observer,
    named: bool,
) -> list[Row]:
    """Train heads on the features of a frozen backbone."""
    pretrained, count, settings = workspace.pretrained, store.manifest.train_count, parameters.finetune
    features = np.array(load_array(pretrained.features, AGAIN)[:count])
    if not pretrained.views.exists():
        raise UserError(
            f"finetune.epochs = {settings.epochs} trains heads on random views of the images, and {pretrained.folder} "
            "holds none; set pretrain.cached_views, such as 4, or finetune.epochs: 0"
        )
    views = np.load(pretrained.views)
    own = HeadSettings(
        neighbors=parameters.k, epochs=settings.epochs, batch_size=settings.batch_size, seed=parameters.seed
    )
    head, rows = refine_heads(
        features, views, parameters.number, parameters.conaff, own, checkpoint=checkpoint, observer=observer
    )
    files = workspace.finetuned(parameters.seed)
    save_head(files.weights, head)
    write_log(files.log, rows)
    return rows


def _check_pretrained(workspace: Workspace, parameters: FinetuneStage, store: Store) -> None:
    """Refuse what pretraining has not made, or not for these images."""
    if not workspace.pretrained.is_frozen:
        _load_pretrained(workspace.pretrained.weights, parameters)
    read_record(workspace.pretrained.folder, AGAIN, {"store": store.manifest.training_identity})


def _load_pretrained(path: Path, parameters: FinetuneStage) -> tuple[Siamese, ModelSpec, int]:
    """The networks to start from, what they are built from, and after how many epochs."""
    model, spec, epochs = load_weights(path)
    if spec.framework != parameters.framework.name:
        raise UserError(
            f"{path} was trained with framework.name = {spec.framework}, not {parameters.framework.name}; run conr "
            "pretrain again, or set framework.name back"
        )
    return model, spec, epochs


def _features(workspace: Workspace, parameters: FinetuneStage, store: Store) -> NDArray[np.float32]:
    """Unit vectors of the images to train on, before ConNR."""
    if workspace.pretrained.is_frozen:
        return load_array(workspace.pretrained.features, AGAIN)[: store.manifest.train_count]
    model, _, _ = _load_pretrained(workspace.pretrained.weights, parameters)
    context = Context.on_device(model, store.training_images, None, parameters, SILENT)
    features: NDArray[np.float32] = context.features().cpu().numpy()
    return features
