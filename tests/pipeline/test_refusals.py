"""What stages refuse before or while they train: images and weights that do not go with the parameters."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from project import run_stages, tiny

from conr.data.store import Manifest, open_store, write_subset
from conr.errors import Note, UserError
from conr.parameters import STAGES, PretrainStage
from conr.parameters.groups import Evaluate
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.evaluate import check_graph
from conr.pipeline.pretrain import model_spec
from conr.pipeline.workspace import Workspace
from conr.training.weights import save_weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters": 1798}, "clusters = 1798 is larger than the number of images to train on (1797); lower it"),
        (
            {"framework.name": "moco", "finetune.instance": 1.0, "framework.queue": 1797},
            "framework.queue = 1797 is not",
        ),
        (
            {"k1": 1798, "finetune.batch_size": 1798, "evaluate.context": 1798},
            "k1 = 1798 is larger than the number of images in a batch (1796); lower it",
        ),
        (
            {"clusters": 1798, "pretrain.scattering": 0.1, "pretrain.prototypes": 1799},
            "clusters = 1798 is larger than the number of images to train on (1797); lower it; also, "
            "pretrain.prototypes = 1799 is larger than the number of images to train on (1797); lower it",
        ),
    ],
)
def test_parameters_that_do_not_go_with_the_images_are_named(
    packed: Workspace, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        check_data(tiny(changes), open_store(packed.store).manifest)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("clusters", "k1", "k2", "message"),
    [
        (10, 101, 0, "evaluate.graph_k1 = 101 is larger than the number of images to cluster (100); lower it"),
        (
            10,
            90,
            91,
            "evaluate.graph_k2 = 91 is larger than evaluate.graph_k1 (90); lower it, or set evaluate.",
        ),
        (50, 0, 8, "evaluate.graph_k2 = 8 is larger than k1, which is 5 for 100 images in 50 clusters; lower it, or"),
    ],
)
def test_neighborhoods_of_the_graph_that_do_not_go_with_the_images_are_named(
    clusters: int, k1: int, k2: int, message: str
) -> None:
    check_graph(Evaluate(graph_k1=90, graph_k2=90), clusters, 100)
    with pytest.raises(UserError) as error:
        check_graph(Evaluate(graph_k1=k1, graph_k2=k2), clusters, 100)
    assert str(error.value).startswith(message)


def manifest_of(packed: Workspace, images: int, folder: Path) -> Manifest:
    """Of the first so many images."""
    write_subset(open_store(packed.store), np.arange(images), folder)
    return open_store(folder).manifest


@pytest.mark.parametrize("images", [5, 12])
def test_a_batch_larger_than_the_data_is_reduced_with_a_note(packed: Workspace, images: int, tmp_path: Path) -> None:
    manifest = manifest_of(packed, images, tmp_path / "store")
    given = tiny({"pretrain.batch_size": 12, "finetune.batch_size": 20})
    with pytest.warns(Note) as notes:
        fitted = fit_batches(given, manifest)
    used = images - images % 2
    expected = {5: ["pretrain.batch_size = 12", "finetune.batch_size = 20"], 12: ["finetune.batch_size = 20"]}[images]
    about = f" is larger than the number of images to train on ({images}); {used} is used"
    assert [str(note.message) for note in notes] == [first + about for first in expected]
    assert (fitted.pretrain.batch_size, fitted.finetune.batch_size) == ((4, 4) if images == 5 else (12, 12))
    changed = {"pretrain": fitted.pretrain, "finetune": fitted.finetune}
    assert fitted == given.model_copy(update=changed), "something else was changed, too"


def test_a_run_with_a_batch_larger_than_the_data_is_one_with_all_images(
    packed: Workspace, workspace: Workspace
) -> None:
    few = np.arange(0, 1797, 90)
    workspace.store.unlink()
    write_subset(open_store(packed.store), few, workspace.store)
    changes = {"clusters": 2, "k": 3, "k1": 4, "finetune.batch_size": 20}
    with pytest.warns(Note, match=r"pretrain\.batch_size = 128 .*; 20 is used"):
        run_stages(workspace, tiny(changes), "pretrain")
    weights = workspace.pretrained.weights.read_bytes()
    run_stages(workspace, tiny({**changes, "pretrain.batch_size": 20}), "pretrain")
    assert workspace.pretrained.weights.read_bytes() == weights


def test_one_image_is_refused(packed: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is one image to train on, and a batch needs two"):
        check_data(tiny(), manifest_of(packed, 1, tmp_path / "store"))


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
    with pytest.raises(UserError, match=f"^{images} is missing or damaged "):
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
