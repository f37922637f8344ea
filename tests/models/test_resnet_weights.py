"""State dicts of torchvision's ResNets from files of somebody else's: what is read, and what is refused."""

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from conr.errors import UserError
from conr.models.backbones import parse_backbone
from conr.models.resnet_weights import ResNetWeights, read_resnet

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's ResNet-18 with random weights."""
    torch.manual_seed(0)
    network: nn.Module = torchvision.models.resnet18()
    return network


@pytest.fixture
def state(theirs: nn.Module) -> State:
    return dict(theirs.state_dict())


def read(content: object, path: Path) -> ResNetWeights:
    torch.save(content, path)
    return read_resnet(parse_backbone(f"weights:{path}"))


def of_torchvision(name: str) -> State:
    """All names and shapes of a network, with tensors that take no memory."""
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name).state_dict()
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in shapes.items()}


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_the_architecture_follows_from_the_weights(tmp_path: Path, name: str, features: int) -> None:
    weights = read(of_torchvision(name), tmp_path / "weights.pth")
    assert (weights.architecture, weights.encoder().features) == (name, features)


def test_an_encoder_computes_what_the_network_of_the_weights_does(
    tmp_path: Path, theirs: nn.Module, state: State
) -> None:
    encoder = read(state, tmp_path / "weights.pth").encoder().eval()
    found: list[Tensor] = []
    hook = theirs.fc.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    images = torch.rand(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs.eval()(images)
        torch.testing.assert_close(encoder(images), found[0])
    hook.remove()
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def renamed(prefix: str) -> Callable[[State], object]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


FORMS: dict[str, Callable[[State], object]] = {
    "as torchvision has it": lambda state: state,
    "without a classifier": lambda state: {name: state[name] for name in state if not name.startswith("fc.")},
    "with another classifier": lambda state: {**state, "fc.weight": torch.zeros(7, 3), "fc.1.bias": torch.zeros(7)},
    "in a checkpoint": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "in a checkpoint, as model": lambda state: {"model": state, "epoch": 3},
    "of a data-parallel network": renamed("module."),
    "of an encoder": renamed("encoder."),
    "of a backbone in a data-parallel network in a checkpoint": lambda state: {
        "state_dict": renamed("module.backbone.")(state)
    },
    "of before batches were counted": lambda state: {
        name: state[name] for name in state if "num_batches_tracked" not in name
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_many_forms(tmp_path: Path, state: State, form: str) -> None:
    weights = read(FORMS[form](state), tmp_path / "weights.pt")
    assert weights.architecture == "resnet18"
    assert weights.state.keys() == {name for name in state if not name.startswith("fc.")}
    for name, tensor in weights.state.items():
        assert torch.equal(tensor, state[name])


def test_safetensors_are_read_in_any_number_format(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.safetensors"
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    safetensors.torch.save_file(half, path)
    loaded = read_resnet(parse_backbone(f"weights:{path}")).encoder().state_dict()
    for name, tensor in loaded.items():
        assert tensor.dtype == state[name].dtype
        torch.testing.assert_close(tensor, state[name], atol=1e-3, rtol=1e-3)


def without(*names: str) -> Callable[[State], object]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


def with_tensors(**tensors: Tensor) -> Callable[[State], object]:
    return lambda state: {**state, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


WRONG: dict[str, tuple[Callable[[State], Any], str]] = {
    "a missing tensor": (without("layer1.0.conv1.weight"), "with resnet18, it lacks layer1.0.conv1.weight. Name"),
    "many missing tensors": (
        lambda state: {"conv1.weight": state["conv1.weight"]},
        "it lacks bn1.weight, bn1.bias, bn1.running_mean and ",
    ),
    "another tensor": (with_tensors(head__weight=torch.zeros(2)), "it has, besides, head.weight. Name another file"),
    "another shape": (
        with_tensors(conv1__weight=torch.zeros(64, 3, 3, 3)),
        "conv1.weight has the shape (64, 3, 3, 3), not (64, 3, 7, 7)",
    ),
    "not finite": (with_tensors(bn1__bias=torch.full((64,), torch.nan)), "bn1.bias holds numbers that are not finite"),
    "two networks": (
        lambda state: {**renamed("encoder.")(state), **renamed("module.")(state)},  # type: ignore[dict-item]
        "holds conv1.weight of several networks",
    ),
    "no tensors": (lambda state: {"state_dict": {"conv1.weight": 1}}, "holds no state dict"),
    "one tensor": (lambda state: torch.zeros(3), "holds no state dict"),
    "an empty dict": (lambda state: {}, "it lacks conv1.weight, bn1.weight, bn1.bias and 97 more"),
    "numbers as names": (lambda state: {1: torch.zeros(3)}, "it lacks conv1.weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_weights_are_refused_with_the_file_and_the_first_names(tmp_path: Path, state: State, case: str) -> None:
    change, message = WRONG[case]
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(change(state), path)
    assert str(error.value).startswith(f"network.backbone: {path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnet101", "mobilenet_v3_small"])
def test_other_networks_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="does not hold the weights of torchvision's ResNet-18, 34 or 50"):
        read(of_torchvision(name), tmp_path / "weights.pth")


class Code:
    """Runs code where a pickle is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(
    tmp_path: Path, save: Callable[[Mapping[str, object], Path], object]
) -> None:
    path = tmp_path / "weights.pth"
    save({"conv1.weight": Code(tmp_path / "it ran")}, path)
    with pytest.raises(UserError, match=f"^network.backbone: {path} is damaged, or holds more than tensors"):
        read_resnet(parse_backbone(f"weights:{path}"))
    assert not (tmp_path / "it ran").exists()


def test_a_whole_network_in_a_pickle_is_refused(tmp_path: Path, theirs: nn.Module) -> None:
    with pytest.raises(UserError, match=r"Save only the weights: torch\.save\(network\.state_dict\(\), FILE\)$"):
        read(theirs, tmp_path / "network.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_one_line(tmp_path: Path, state: State, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    for content in (b"", b"no weights at all", whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^network.backbone: {path} is (not a whole|damaged)") as error:
            read_resnet(parse_backbone(f"weights:{path}"))
        assert "\n" not in str(error.value)
