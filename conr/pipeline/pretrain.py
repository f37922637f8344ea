"""pretrain: the store → networks trained with instance concordance (BYOL)."""

from conr.data.store import Manifest, open_store
from conr.observer import SILENT, Observer
from conr.parameters import PretrainStage
from conr.pipeline.checks import check_data
from conr.pipeline.workspace import Workspace
from conr.training import pretraining
from conr.training.checkpoints import Checkpoint, fingerprint
from conr.training.log import Row, write_log
from conr.training.weights import ModelSpec, save_weights


def pretrain(workspace: Workspace, parameters: PretrainStage, observer: Observer = SILENT) -> list[Row]:
    """Train networks from scratch, or resume where the same run was interrupted.

    Returns:
        The log, one row per epoch.

    Raises:
        UserError: the store is missing or does not fit the parameters, or the training diverges.
    """
    parameters, store = PretrainStage.of(parameters), open_store(workspace.store)
    check_data(parameters, store.manifest)
    spec = model_spec(parameters, store.manifest)
    model = spec.build(parameters.seed)
    name = f"pretrain-{fingerprint('pretrain', parameters.model_dump(), store.training_identity)}"
    checkpoint = Checkpoint(workspace.checkpoint(name))
    images, labels = store.training_images, store.training_labels
    rows = pretraining.pretrain(model, images, labels, parameters, checkpoint, observer)
    save_weights(workspace.pretrained.weights, model, spec, epochs=len(rows))
    write_log(workspace.pretrained.log, rows)
    checkpoint.remove()
    return rows


def model_spec(parameters: PretrainStage, manifest: Manifest) -> ModelSpec:
    """What the networks for a store are built from."""
    return ModelSpec(
        **parameters.network.model_dump(),
        framework=parameters.framework.name,
        mean=tuple(manifest.mean),
        std=tuple(manifest.std),
    )
