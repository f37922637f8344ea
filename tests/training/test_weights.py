"""What a weights file gives back, what is refused, and what networks are built from."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from small_networks import small_spec

from conr import frameworks
from conr.errors import UserError
from conr.models.siamese import Siamese
from conr.training.weights import ModelSpec, load_weights, save_weights

SPEC = small_spec(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def used_model(spec: ModelSpec) -> Siamese:
    """A network that has seen images and whose target lags behind."""
    model = spec.build(seed=0)
    model(torch.rand(8, 3, 8, 8), torch.rand(8, 3, 8, 8), torch.Generator().manual_seed(0))
    model.project(torch.rand(8, 3, 8, 8))
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.mul_(1.1)
    model.update_target(torch.tensor(0.5))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Siamese:
    return used_model(SPEC)


@pytest.fixture
def weights(model: Siamese, tmp_path: Path) -> Path:
    path = tmp_path / "deeper" / "model.safetensors"
    save_weights(path, model, SPEC, epochs=37)
    return path


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_weights_come_back_with_their_spec_their_epochs_and_identical_outputs(model: Siamese, weights: Path) -> None:
    loaded, spec, epochs = load_weights(weights)
    assert (spec, epochs) == (SPEC, 37)
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
@pytest.mark.parametrize("framework", frameworks.names())
def test_weights_of_every_framework_come_back(framework: str, bn_group: int, tmp_path: Path) -> None:
    spec = small_spec(framework=framework, bn_group=bn_group)
    model = used_model(spec)
    save_weights(tmp_path / "weights.safetensors", model, spec, epochs=0)
    loaded, found, epochs = load_weights(tmp_path / "weights.safetensors")
    assert (found, epochs) == (spec, 0)
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


def drop_metadata(path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(3)}, path)


def use_foreign_metadata(path: Path) -> None:
    safetensors.torch.save_file({"w": torch.zeros(3)}, path, metadata={"network": '{"layers": 3}'})


def with_metadata(**changes: object) -> Callable[[Path], None]:
    """Replace parts of the metadata, or leave out those that are None."""

    def damage(path: Path) -> None:
        metadata = {"spec": SPEC.model_dump(mode="json"), "epochs": 37} | changes
        known = json.dumps({key: value for key, value in metadata.items() if value is not None})
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata={"conr": known})

    return damage


def with_spec(**changes: object) -> Callable[[Path], None]:
    """Replace entries of the spec."""
    return with_metadata(spec=SPEC.model_dump(mode="json") | changes)


def drop_the_framework(path: Path) -> None:
    with_metadata(spec=SPEC.model_dump(mode="json", exclude={"framework"}))(path)


def drop_a_tensor(path: Path) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    tensors.pop("predictor.0.weight")
    safetensors.torch.save_file(tensors, path, metadata=metadata)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "cut header": cut_header,
    "empty": empty,
    "text": write_text,
    "no metadata": drop_metadata,
    "foreign metadata": use_foreign_metadata,
    "no spec": with_metadata(spec=None),
    "no epochs": with_metadata(epochs=None),
    "epochs that are no number": with_metadata(epochs="many"),
    "garbled spec": with_metadata(spec="{"),
    "unknown key": with_spec(depth=18),
    "missing key": drop_the_framework,
    "wrong type": with_spec(width="4"),
    "unknown architecture": with_spec(architecture="vit"),
    "unknown framework": with_spec(framework="dino"),
    "another width": with_spec(width=8),
    "a tensor less": drop_a_tensor,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_foreign_weights_are_one_line_that_names_the_file(damage: str, weights: Path) -> None:
    DAMAGES[damage](weights)
    with pytest.raises(UserError, match=rf"^{weights} ") as caught:
        load_weights(weights)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_the_spec_is_named(weights: Path) -> None:
    with_spec(depth=18)(weights)
    with pytest.raises(UserError, match=rf"^{weights} .*depth"):
        load_weights(weights)


def test_missing_weights_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors does not exist"):
        load_weights(tmp_path / "nowhere.safetensors")


def test_failure_while_saving_weights_leaves_the_old_file(
    model: Siamese, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_weights(weights, model, SPEC, epochs=38)
    assert weights.read_bytes() == before
    assert list(weights.parent.iterdir()) == [weights]


# Building


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    first = small_spec().build(seed=3).state_dict()
    torch.rand(7)  # the state of the global generator must not matter
    again, other = small_spec().build(seed=3).state_dict(), small_spec().build(seed=4).state_dict()
    assert same(dict(first), dict(again))
    assert not torch.equal(first["online.encoder.conv1.weight"], other["online.encoder.conv1.weight"])


def test_networks_carry_the_pixel_statistics_of_the_spec() -> None:
    online = SPEC.build().online
    assert online.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert online.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_a_spec_is_frozen_and_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError):
        small_spec(depth=18)
    with pytest.raises(ValidationError):
        SPEC.width = 8
