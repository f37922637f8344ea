"""Pretraining that starts from the weights of a ResNet instead of random ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from project import run_stages, tiny

from conr.data.store import load_manifest, open_store, write_subset
from conr.errors import Note, UserError
from conr.models.backbones import IMAGENET_MEAN, IMAGENET_STD, identity, parse_backbone
from conr.observer import Observer
from conr.parameters import Parameters, PretrainStage
from conr.pipeline.pretrain import model_spec, pretrain, starting_weights
from conr.pipeline.workspace import RECORD, Record, Workspace
from conr.training.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore:network.backbone = .* comes with:conr.errors.Note")
# So small a learning rate that weights stay what they are.
STILL: dict[str, Any] = {"optimizer.base_learning_rate": 1e-12, "pretrain.batch_size": 10, "network.hidden": 8}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of a ResNet-18."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture
def workspace(packed: Workspace, tmp_path: Path) -> Workspace:
    """Twenty digits."""
    workspace = Workspace.at(tmp_path / "run")
    write_subset(open_store(packed.store), np.arange(20), workspace.store)
    return workspace


def starting_from(path: Path, changes: Mapping[str, Any] | None = None) -> Parameters:
    return tiny({"network.backbone": f"weights:{path}", "pretrain.epochs": 1, **STILL, **(changes or {})})


def test_both_encoders_start_from_the_weights_heads_are_fresh_and_a_note_names_what_is_overridden(
    workspace: Workspace, file: Path
) -> None:
    parameters = starting_from(file)
    with pytest.warns(Note, match=r"comes with network\.width = 64 \(not 4\), network\.stem = imagenet \(not cifar\)$"):
        run_stages(workspace, parameters, "pretrain")
    model, spec, epochs = load_weights(workspace.pretrained.weights)
    assert (spec.architecture, spec.width, spec.stem, epochs) == ("resnet18", 64, "imagenet", 1)
    assert (spec.mean, spec.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (spec.hidden, spec.dimension) == (8, 16)
    state = torch.load(file, weights_only=True)
    for network in (model.online, model.target):
        for name, parameter in network.encoder.named_parameters():
            torch.testing.assert_close(parameter.detach(), state[name], atol=1e-6, rtol=1e-6)
    fresh = spec.build(parameters.seed)
    for name, tensor in fresh.online.projector.named_parameters():
        torch.testing.assert_close(model.online.projector.state_dict()[name], tensor.detach(), atol=1e-6, rtol=1e-6)
    record = Record.model_validate_json((workspace.pretrained.folder / RECORD).read_bytes())
    assert record.made_from == {
        "store": load_manifest(workspace.store).training_identity,
        "backbone": identity(parse_backbone(f"weights:{file}")),
    }


def test_no_note_where_nothing_is_overridden(
    workspace: Workspace, file: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run_stages(workspace, starting_from(file, {"network.width": 64, "network.stem": "imagenet"}), "pretrain")
    assert [note for note in recwarn if note.category is Note] == []


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_networks_are_as_large_as_those_of_the_file(packed: Workspace, tmp_path: Path, name: str) -> None:
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name).state_dict()
    torch.save({key: torch.zeros(()).expand(tensor.shape) for key, tensor in shapes.items()}, tmp_path / "weights.pth")
    parameters = PretrainStage.of(starting_from(tmp_path / "weights.pth"))
    spec = model_spec(parameters, load_manifest(packed.store), starting_weights(parameters))
    assert (spec.architecture, spec.width, spec.stem) == (name, 64, "imagenet")


class Stopping(Observer):
    """Stops a training once its first epoch is saved."""

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt


class Counting(Observer):
    """Counts the epochs that are trained."""

    def __init__(self) -> None:
        self.epochs = 0

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.epochs += 1


@pytest.mark.parametrize(("changed", "epochs"), [(False, 1), (True, 2)])
def test_a_stopped_training_resumes_with_the_same_weights_only(
    workspace: Workspace, file: Path, tmp_path: Path, changed: bool, epochs: int
) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(file.read_bytes())
    parameters = PretrainStage.of(starting_from(own, {"pretrain.epochs": 2}))
    with pytest.raises(KeyboardInterrupt):
        pretrain(workspace, parameters, Stopping())
    if changed:
        state = torch.load(own, weights_only=True)
        state["conv1.weight"] *= 2
        torch.save(state, own)
    counting = Counting()
    pretrain(workspace, parameters, counting)
    assert counting.epochs == epochs


def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(
    workspace: Workspace, tmp_path: Path
) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=f"^network.backbone: {tmp_path}/mine.pth does not hold the weights"):
        run_stages(workspace, starting_from(tmp_path / "mine.pth"), "pretrain")
    assert not workspace.pretrained.folder.exists()
