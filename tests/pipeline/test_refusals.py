"""What stages refuse before or while they train: images and weights that do not go with the parameters."""

import shutil

import pytest
from project import run_stages, tiny

from conr.data.store import open_store
from conr.errors import UserError
from conr.parameters import STAGES, PretrainStage
from conr.pipeline.checks import check_data
from conr.pipeline.pretrain import model_spec
from conr.pipeline.workspace import Workspace
from conr.training.weights import save_weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 1798}, "clusters = 1798 is larger than the number of images (1797); lower it"),
        ({"pretrain.batch_size": 1798}, "pretrain.batch_size = 1798 is larger than the number of images to train on"),
        ({"finetune.batch_size": 1798}, "finetune.batch_size = 1798 is larger than the number of images to train on"),
        (
            {"framework.name": "moco", "finetune.instance": 1.0, "framework.queue": 1797},
            "framework.queue = 1797 is not",
        ),
        (
            {"k1": 1798, "finetune.batch_size": 1798, "evaluate.context": 1798},
            "finetune.batch_size = 1798 is larger than the number of images to train on",
        ),
    ],
)
def test_parameters_that_do_not_go_with_the_images_are_named(
    packed: Workspace, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        check_data(tiny(changes), open_store(packed.store).manifest)
    assert str(error.value).startswith(message)


def test_a_stage_is_not_checked_for_what_it_does_not_read(packed: Workspace) -> None:
    manifest = open_store(packed.store).manifest
    too_many = tiny({"clusters": 5000})
    check_data(PretrainStage.of(too_many), manifest)
    for stage in ("finetune", "evaluate"):
        with pytest.raises(UserError, match="clusters = 5000"):
            check_data(STAGES[stage].of(too_many), manifest)


def test_weights_of_another_framework_are_refused(workspace: Workspace) -> None:
    spec = model_spec(PretrainStage.of(tiny()), open_store(workspace.store).manifest)
    save_weights(workspace.pretrained.weights, spec.build(0), spec, epochs=2)
    message = r"was trained with framework\.name = byol, not simsiam; run conr pretrain again"
    with pytest.raises(UserError, match=message):
        run_stages(workspace, tiny({"framework.name": "simsiam"}), "finetune")
    assert not workspace.refined.exists()


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "extract", "evaluate"])
def test_a_truncated_store_is_refused(packed: Workspace, workspace: Workspace, stage: str) -> None:
    workspace.store.unlink()
    shutil.copytree(packed.store, workspace.store)
    images = workspace.store / "images.npy"
    images.write_bytes(images.read_bytes()[:-1000])
    with pytest.raises(UserError, match=f"^{workspace.store} is not a whole store"):
        run_stages(workspace, tiny(), stage)


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "extract", "evaluate"])
def test_a_store_that_is_not_there_says_what_to_run(workspace: Workspace, stage: str) -> None:
    workspace.store.unlink()
    with pytest.raises(UserError, match=f"^{workspace.store} does not exist; run conr prepare first"):
        run_stages(workspace, tiny(), stage)


def test_a_loss_that_is_not_finite_stops_and_names_the_epoch(workspace: Workspace) -> None:
    with pytest.raises(UserError, match=r"^pretrain: the loss is not a finite number in epoch 1 of 2"):
        run_stages(workspace, tiny({"optimizer.base_learning_rate": 1e30}), "pretrain")
    assert not workspace.pretrained.weights.exists()
