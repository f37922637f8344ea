"""pretrain: the store → networks trained with instance concordance (BYOL)."""

import warnings
from functools import partial
from pathlib import Path

from conr.data.store import Manifest, open_same_store, open_store
from conr.embedding.engines.settings import LOCAL, Engine
from conr.errors import Note
from conr.models.backbones import IMAGENET_MEAN, IMAGENET_STD, identity, parse_backbone
from conr.models.resnet_weights import STEM, WIDTH, ResNetWeights, read_resnet
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import PretrainStage
from conr.parameters.groups import SCRATCH
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.frozen import embed_frozen
from conr.pipeline.records import NO_OTHER_RUN, write_record
from conr.pipeline.workspace import Workspace, writes
from conr.training import pretraining
from conr.training.checkpoints import Checkpoint, fingerprint
from conr.training.compute import Compute
from conr.training.launcher import choose_processes, train_together
from conr.training.log import Row, write_log
from conr.training.threads import training_threads
from conr.training.weights import ModelSpec, save_weights


@writes
def pretrain(
    workspace: Workspace, parameters: PretrainStage, observer: Observer = SILENT, engine: Engine = LOCAL
) -> list[Row]:
    """Train networks, or resume where the same run was interrupted; of a frozen backbone take the features instead.

    Only those are the work of an engine.

    Returns:
        The log, one row per epoch; none of a frozen backbone.

    Raises:
        UserError: the store is missing or does not fit the parameters, the backbone cannot be used, or the training
            diverges.
    """
    asked, store = PretrainStage.of(parameters), open_store(workspace.store)
    check_data(asked, store.manifest)
    if asked.network.is_frozen:
        embed_frozen(workspace, asked, store, observer, engine)
        return []
    backbone, weights = identity(parse_backbone(asked.network.backbone)), starting_weights(asked)
    parameters, spec = fit_batches(asked, store.manifest), model_spec(asked, store.manifest, weights)
    _note_overridden(asked, spec)
    device, size = Compute.choose(asked.device, asked.precision).device, parameters.pretrain.batch_size
    processes = choose_processes(asked.training.processes, device, "pretrain", size, spec.bn_group)
    images = store.manifest.training_identity
    run = fingerprint("pretrain", parameters.model_dump(exclude=NO_OTHER_RUN), images, backbone)
    with workspace.own_checkpoint(f"pretrain-{run}") as folder:
        checkpoint = Checkpoint(folder)
        job = partial(_train, workspace.store, images, spec, parameters, checkpoint)
        with training_threads(asked.training.threads, device, folder):
            model, rows = train_together(job, processes, observer)
        save_pretrained(workspace, model, spec, asked, store.manifest, rows, backbone=backbone)
        checkpoint.remove()
    return rows


def _train(
    folder: Path, identity: str, spec: ModelSpec, parameters: PretrainStage, checkpoint: Checkpoint, observer: Observer
) -> tuple[Siamese, list[Row]]:
    """Train networks on a store, which must be the one of that identity: what each of several processes does."""
    store, model = open_same_store(folder, identity), spec.build(parameters.seed)
    weights = starting_weights(parameters)
    if weights is not None:
        for network in (model.online, model.target):
            network.encoder.load_state_dict(weights.state)
    images, labels = store.training_images, store.training_labels
    return model, pretraining.pretrain(model, images, labels, parameters, checkpoint, observer)


def save_pretrained(
    workspace: Workspace,
    model: Siamese,
    spec: ModelSpec,
    parameters: PretrainStage,
    manifest: Manifest,
    rows: list[Row],
    epochs: int | None = None,
    backbone: str = SCRATCH,
) -> None:
    """Write the networks, their log and the record of both.

    Args:
        workspace: to write to.
        model, spec: the networks, and what they are built from.
        parameters: of the stage.
        manifest: of the store.
        rows: the log.
        epochs: how many they count for, if not those logged.
        backbone: identity of what the training started from.
    """
    files = workspace.pretrained
    for path in (files.encoder, files.features, files.views):  # of a frozen backbone before
        path.unlink(missing_ok=True)
    save_weights(files.weights, model, spec, len(rows) if epochs is None else epochs)
    write_log(files.log, rows)
    made_from = {"store": manifest.training_identity, "backbone": backbone}
    write_record(files.folder, [files.weights, files.log], [parameters.seed], made_from, parameters=parameters)


def starting_weights(parameters: PretrainStage) -> ResNetWeights | None:
    """The weights that a training of the encoder starts from; None for random ones.

    Raises:
        UserError: their file cannot be used.
    """
    backbone = parse_backbone(parameters.network.backbone)
    return read_resnet(backbone) if backbone.kind == "weights" and parameters.network.encoder == "trained" else None


def model_spec(parameters: PretrainStage, manifest: Manifest, weights: ResNetWeights | None = None) -> ModelSpec:
    """What the networks for a store are built from; weights to start from settle the encoder and its normalization."""
    settings = parameters.network.layers
    mean, std = tuple(manifest.mean), tuple(manifest.std)
    if weights is not None:
        settings |= {"architecture": weights.architecture, "width": WIDTH, "stem": STEM}
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return ModelSpec(**settings, framework=parameters.framework.name, mean=mean, std=std)


def _note_overridden(parameters: PretrainStage, spec: ModelSpec) -> None:
    """Tell the user which parameters do not count because weights to start from come with others."""
    network = parameters.network
    others = [
        f"network.{name} = {value} (not {asked})"
        for name in ("architecture", "width", "stem")
        if (value := getattr(spec, name)) != (asked := getattr(network, name))
    ]
    if others:
        warnings.warn(Note(f"network.backbone = {network.backbone} comes with {', '.join(others)}"), stacklevel=3)
