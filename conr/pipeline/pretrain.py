"""pretrain: the store → networks trained with instance concordance (BYOL)."""

from conr.data.store import Manifest, open_store
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.parameters import PretrainStage
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.frozen import embed_frozen
from conr.pipeline.records import write_record
from conr.pipeline.workspace import Workspace, writes
from conr.training import pretraining
from conr.training.checkpoints import Checkpoint, fingerprint
from conr.training.log import Row, write_log
from conr.training.weights import ModelSpec, save_weights


@writes
def pretrain(workspace: Workspace, parameters: PretrainStage, observer: Observer = SILENT) -> list[Row]:
    """Train networks, or resume where the same run was interrupted; of a frozen backbone take the features instead.

    Returns:
        The log, one row per epoch; none of a frozen backbone.

    Raises:
        UserError: the store is missing or does not fit the parameters, or the training diverges.
    """
    asked, store = PretrainStage.of(parameters), open_store(workspace.store)
    check_data(asked, store.manifest)
    if asked.network.is_frozen:
        embed_frozen(workspace, asked, store, observer)
        return []
    parameters = fit_batches(asked, store.manifest)
    model = model_spec(parameters, store.manifest).build(parameters.seed)
    name = f"pretrain-{fingerprint('pretrain', parameters.model_dump(), store.manifest.training_identity)}"
    images, labels = store.training_images, store.training_labels
    with workspace.own_checkpoint(name) as folder:
        checkpoint = Checkpoint(folder)
        rows = pretraining.pretrain(model, images, labels, parameters, checkpoint, observer)
        save_pretrained(workspace, model, asked, store.manifest, rows)
        checkpoint.remove()
    return rows


def save_pretrained(
    workspace: Workspace,
    model: Siamese,
    parameters: PretrainStage,
    manifest: Manifest,
    rows: list[Row],
    epochs: int | None = None,
) -> None:
    """Write the networks, their log and the record of both; epochs is how many they count for, if not those logged."""
    files = workspace.pretrained
    for path in (files.encoder, files.features, files.views):  # of a frozen backbone before
        path.unlink(missing_ok=True)
    spec = model_spec(parameters, manifest)
    save_weights(files.weights, model, spec, len(rows) if epochs is None else epochs)
    write_log(files.log, rows)
    made_from = {"store": manifest.training_identity}
    write_record(files.folder, [files.weights, files.log], [parameters.seed], made_from, parameters=parameters)


def model_spec(parameters: PretrainStage, manifest: Manifest) -> ModelSpec:
    """What the networks for a store are built from."""
    return ModelSpec(
        **parameters.network.model_dump(exclude={"backbone", "frozen"}),
        framework=parameters.framework.name,
        mean=tuple(manifest.mean),
        std=tuple(manifest.std),
    )
