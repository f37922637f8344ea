"""Weights of torchvision's ResNets that somebody else trained: read from a file, or refused with a reason."""

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from conr.errors import UserError, one_line
from conr.models.backbones import KEY, Backbone, weights_file
from conr.models.resnet import Encoder

WIDTH, STEM = 64, "imagenet"  # of torchvision's ResNets
PREFIXES = ("module.", "encoder.", "backbone.")  # that trainings put before the names
NESTED = ("state_dict", "model")  # where checkpoints keep the weights
CLASSIFIER = "fc."
COUNTER = "num_batches_tracked"  # of a batch normalization; old files lack it, and nothing is computed with it
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class ResNetWeights:
    """The weights of a ResNet of torchvision's shape.

    Attributes:
        architecture: of `conr.models.resnet.Encoder`; its width is `WIDTH`, its stem `STEM`.
        state: name → tensor, of exactly that encoder.
    """

    architecture: str
    state: Mapping[str, Tensor]

    def encoder(self) -> Encoder:
        """A network with these weights."""
        with torch.device("meta"):  # random weights, which take time, are not needed
            encoder = Encoder(self.architecture, WIDTH, STEM)
        encoder.load_state_dict(self.state, assign=True)
        return encoder


def read_resnet(backbone: Backbone) -> ResNetWeights:
    """Read the state dict of a ResNet-18, 34 or 50, from .safetensors or from what `torch.save` wrote.

    A checkpoint that holds it under "state_dict" or "model" is unwrapped, `PREFIXES` are removed, and the classifier is
    ignored.

    Args:
        backbone: of kind "weights".

    Raises:
        UserError: the file is missing or damaged, holds code besides tensors, or is of another network.
    """
    path = weights_file(backbone)
    state = _unwrapped(_load(path), path)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(CLASSIFIER)}
    architecture = _architecture(state)
    with torch.device("meta"):
        expected = Encoder(architecture, WIDTH, STEM).state_dict()
    for name in expected.keys() - state.keys():
        if name.endswith(COUNTER):
            state[name] = torch.zeros((), dtype=torch.int64)
    problems = [
        _listed("it lacks", [name for name in expected if name not in state]),
        _listed("it has, besides,", [name for name in state if name not in expected]),
        *(
            f"{name} has the shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ),
    ]
    if found := [problem for problem in problems if problem]:
        raise UserError(
            f"{KEY}: {path} does not hold the weights of torchvision's ResNet-18, 34 or 50. Compared with "
            f"{architecture}, {'; '.join(found[:SHOWN])}. Name another file, or export the network to ONNX (onnx:FILE)"
        )
    for name in expected:
        if not state[name].float().sum().isfinite():  # ten times as fast as looking at each number
            raise UserError(f"{KEY}: {path}: {name} holds numbers that are not finite; name another file")
    return ResNetWeights(architecture, {name: state[name].to(tensor.dtype) for name, tensor in expected.items()})


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are refused
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{KEY}: {path} is damaged, or holds more than tensors, which could run code; it is not loaded. Save only "
            "the weights: torch.save(network.state_dict(), FILE)"
        ) from error
    except Exception as error:  # safetensors and PyTorch raise errors of many classes
        raise UserError(f"{KEY}: {path} is not a whole file of weights ({one_line(error)}); get it again") from error


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds, with names as torchvision has them."""
    for name in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(
            f"{KEY}: {path} holds no state dict (name → tensor), also not under {' or '.join(NESTED)}; save one: "
            "torch.save(network.state_dict(), FILE)"
        )
    state: dict[str, Tensor] = {}
    for full, tensor in content.items():
        name = str(full)
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
            name = name.removeprefix(prefix)
        if name in state:
            raise UserError(f"{KEY}: {path} holds {name} of several networks; save the state dict of one of them")
        state[name] = tensor
    return state


def _architecture(state: Mapping[str, Tensor]) -> str:
    """Of which ResNet weights are, by their names; the nearest one of others."""
    if "layer1.0.conv3.weight" in state:
        return "resnet50"
    blocks = {name.split(".")[1] for name in state if name.startswith("layer3.")}
    return "resnet34" if len(blocks) > 2 else "resnet18"


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {', '.join(names[:SHOWN])}{more}" if names else ""
