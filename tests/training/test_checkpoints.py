"""What a checkpoint and a weights file give back, and what a failed write leaves behind."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

import conr
from conr import hosts
from conr.errors import UserError
from conr.files import atomic_file
from conr.networks import Siamese
from conr.training import checkpoints
from conr.training.checkpoints import Checkpoint, fingerprint, load_weights, save_weights
from conr.training.model import build

DESCRIPTION = {
    "architecture": "resnet18",
    "width": 4,
    "stem": "cifar",
    "hidden": 16,
    "dimension": 8,
    "bn_group": 0,
    "predictor_deviation": 0.01,
    "framework": "byol",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}


def used_model(description: dict[str, Any]) -> Siamese:
    """A network that has seen images and whose target lags behind."""
    torch.manual_seed(0)
    model = build(description)
    model(torch.rand(8, 3, 8, 8), torch.rand(8, 3, 8, 8), torch.Generator().manual_seed(0))
    model.project(torch.rand(8, 3, 8, 8))
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.mul_(1.1)
    model.update_target(0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Siamese:
    return used_model(DESCRIPTION)


@pytest.fixture
def weights(model: Siamese, tmp_path: Path) -> Path:
    path = tmp_path / "deeper" / "model.safetensors"
    save_weights(path, model, DESCRIPTION)
    return path


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_checkpoint_returns_what_was_saved_last(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run" / "pretrain")
    assert checkpoint.load() is None
    for epoch in range(2):
        state = {"model": {"w": torch.arange(3.0) + epoch}, "history": [{"epoch": epoch, "loss": 0.25, "acc": None}]}
        checkpoint.save(state)
        assert same(Checkpoint(tmp_path / "run" / "pretrain").load(), state)


def test_saving_is_due_as_often_as_it_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0

    def slow_disk(descriptor: int) -> None:
        nonlocal now
        now += 0.5

    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(os, "fsync", slow_disk)
    checkpoint, saved = Checkpoint(tmp_path), []
    for epoch in range(20):
        now += 3.0  # seconds of an epoch; a saving takes half a second, a fiftieth of 25
        if checkpoint.due:
            checkpoint.save({})
            saved.append(epoch)
    assert saved == [0, 9, 18]


def test_the_epochs_of_a_state_are_those_of_its_history(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.epochs == 0
    for epochs in (1, 3):
        checkpoint.save({"model": {"w": torch.ones(3)}, "history": [{"loss": 0.5}] * epochs})
        assert checkpoint.epochs == epochs


def test_removed_checkpoint_is_gone_and_removing_again_is_harmless(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.save({"epoch": 1})
    checkpoint.remove()
    assert checkpoint.load() is None
    assert not (tmp_path / "run").exists()
    checkpoint.remove()


def test_failure_while_saving_leaves_the_old_state_whole(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.save({"epoch": 1, "w": torch.arange(3)})
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"epoch": 2, "w": torch.zeros(100_000), "cannot be pickled": lambda: None})
    assert same(checkpoint.load(), {"epoch": 1, "w": torch.arange(3)})
    assert [path.name for path in checkpoint.folder.iterdir()] == ["state.pt"]


def test_full_disk_while_saving_leaves_the_old_state_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "run")
    checkpoint.save({"epoch": 1})

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"epoch": 2})
    assert checkpoint.load() == {"epoch": 1}
    assert [path.name for path in checkpoint.folder.iterdir()] == ["state.pt"]


def write_half(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_interrupted_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


PARTS = ({"seed": 0, "views": {"flip": 0.5}}, "checksum", 10)


def test_fingerprint_is_a_function_of_its_parts() -> None:
    reordered = ({"views": {"flip": 0.5}, "seed": 0}, "checksum", 10)
    assert fingerprint(*PARTS) == fingerprint(*reordered)
    assert len(fingerprint(*PARTS)) == 16


@pytest.mark.parametrize(
    "changed",
    [
        ({"seed": 1, "views": {"flip": 0.5}}, "checksum", 10),
        ({"seed": 0, "views": {"flip": 0.4}}, "checksum", 10),
        ({"seed": 0, "views": {"flip": 0.5}, "more": None}, "checksum", 10),
        ({"seed": 0, "views": {"flip": 0.5}}, "Checksum", 10),
        ({"seed": 0, "views": {"flip": 0.5}}, "checksum", "10"),
        ({"seed": 0, "views": {"flip": 0.5}}, "checksum"),
        ("checksum", {"seed": 0, "views": {"flip": 0.5}}, 10),
    ],
)
def test_fingerprint_changes_with_any_part(changed: tuple[object, ...]) -> None:
    assert fingerprint(*changed) != fingerprint(*PARTS)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("training/loop.py", True),
        ("evaluation.py", True),
        ("hosts/export.py", True),
        ("report/page.py", False),
        ("export.py", False),
        ("neighbour_study.py", False),
        ("quantisation.py", False),
    ],
)
def test_fingerprint_changes_with_the_source_code_that_a_training_depends_on(
    file: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conr, "__file__", str(tmp_path / "__init__.py"))
    source = tmp_path / file
    source.parent.mkdir(exist_ok=True)
    source.write_text("rate = 1\n")
    before = fingerprint(*PARTS)
    source.write_text("rate = 2\n")
    assert (fingerprint(*PARTS) != before) == counts


def test_weights_come_back_with_their_description_and_identical_outputs(model: Siamese, weights: Path) -> None:
    loaded, description = load_weights(weights)
    assert description == DESCRIPTION
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))
    images = torch.rand(4, 3, 8, 8)
    loaded.eval()
    assert torch.equal(loaded.project(images), model.project(images))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(
        loaded(images, images, generator).predictions[0], model(images, images, generator).predictions[0]
    )
    assert not torch.equal(loaded.project(images), loaded.online(images))
    assert [path.name for path in weights.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("bn_group", [0, 4])
@pytest.mark.parametrize("framework", hosts.names())
def test_weights_of_every_host_come_back(framework: str, bn_group: int, tmp_path: Path) -> None:
    description = DESCRIPTION | {"framework": framework, "bn_group": bn_group}
    model = used_model(description)
    save_weights(tmp_path / "weights.safetensors", model, description)
    loaded, found = load_weights(tmp_path / "weights.safetensors")
    assert found == description
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert [(name, type(part)) for name, part in loaded.named_modules()] == [
        (name, type(part)) for name, part in model.named_modules()
    ]
    assert (loaded.moving_average, loaded.shuffles_target) == (model.moving_average, model.shuffles_target)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("These are no weights, but a text that is longer than a header. " * 5)


def drop_description(path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(3)}, path)


def use_foreign_description(path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(3)}, path, metadata={"network": '{"layers": 3}'})


def garble_description(path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(3)}, path, metadata={"network": "{"})


def use_unknown_architecture(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    description = json.dumps(DESCRIPTION | {"architecture": "vit"})
    safetensors.torch.save_file(tensors, path, metadata={"network": description})


def use_unknown_framework(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    description = json.dumps(DESCRIPTION | {"framework": "dino"})
    safetensors.torch.save_file(tensors, path, metadata={"network": description})


def drop_the_framework(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    description = json.dumps({name: value for name, value in DESCRIPTION.items() if name != "framework"})
    safetensors.torch.save_file(tensors, path, metadata={"network": description})


def drop_a_tensor(path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    tensors.pop("predictor.0.weight")
    safetensors.torch.save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        cut_header,
        empty,
        write_text,
        drop_description,
        use_foreign_description,
        garble_description,
        use_unknown_architecture,
        use_unknown_framework,
        drop_the_framework,
        drop_a_tensor,
    ],
)
def test_damaged_or_foreign_weights_are_an_error_that_names_the_file(
    damage: Callable[[Path], None], weights: Path
) -> None:
    damage(weights)
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole conr weights file"):
        load_weights(weights)


def test_missing_weights_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors does not exist"):
        load_weights(tmp_path / "nowhere.safetensors")


def test_failure_while_saving_weights_leaves_the_old_file(model: Siamese, weights: Path) -> None:
    before = weights.read_bytes()
    with pytest.raises(TypeError):
        save_weights(weights, model, {"network": object()})
    assert weights.read_bytes() == before
