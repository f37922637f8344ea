"""The networks of BYOL and ConNR: a ResNet encoder, a projector, a predictor and a moving-average target."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

STAGES = 4
BLOCKS_PER_STAGE = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class Encoder(nn.Module):
    """torchvision's ResNet-18 or ResNet-34 without its classifier, of any width, with a stem for small images.

    At width 64 it has the parameter names, the initialisation and the outputs of `torchvision.models.resnet18`.

    Args:
        architecture: "resnet18" or "resnet34".
        width: channels of the first stage; they double with each of the four stages (64 in the paper).
        stem: "imagenet" (7×7 convolution of stride 2 and max-pool) or "cifar" (3×3 of stride 1, no max-pool), for
            images of about 32 pixels and below.

    Raises:
        ValueError: an unknown architecture or stem.
    """

    def __init__(self, architecture: str, width: int, stem: str) -> None:
        super().__init__()
        if architecture not in BLOCKS_PER_STAGE:
            raise ValueError(f"architecture must be one of {', '.join(BLOCKS_PER_STAGE)}, not {architecture!r}")
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        elif stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            raise ValueError(f"stem must be 'cifar' or 'imagenet', not {stem!r}")
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        channels = width
        for stage, blocks in enumerate(BLOCKS_PER_STAGE[architecture]):
            planes = width * 2**stage
            self.add_module(f"layer{stage + 1}", _stage(channels, planes, blocks, stride=1 if stage == 0 else 2))
            channels = planes
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalised images to (B, 8 · width) pooled features."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(STAGES):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return torch.flatten(self.avgpool(x), 1)


class Network(nn.Module):
    """Encoder and projector: F_o or F_t of the paper. It carries the pixel statistics that its images need.

    Args:
        architecture, width, stem: see `Encoder`.
        hidden: units in the hidden layer of the projector.
        dimension: length D of the features.
        mean, std: per channel, of pixels scaled to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: str,
        width: int,
        stem: str,
        hidden: int,
        dimension: int,
        mean: Iterable[float] = (0.5, 0.5, 0.5),
        std: Iterable[float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        self.encoder = Encoder(architecture, width, stem)
        self.projector = mlp(self.encoder.features, hidden, dimension)
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images with pixels in [0, 1] to (B, D) features, not yet normalised."""
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.projector(self.encoder(normalised))
        return features


class Siamese(nn.Module):
    """The two networks of BYOL: online (with a predictor) and target, which follows it and takes no gradient.

    Args:
        network: the online network; the target starts as its copy.
        hidden: units in the hidden layer of the predictor.
        dimension: length D of the features.
    """

    def __init__(self, network: Network, hidden: int, dimension: int) -> None:
        super().__init__()
        self.online = network
        self.predictor = mlp(dimension, hidden, dimension)
        for module in self.predictor.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
        self.target = copy.deepcopy(network).requires_grad_(False)

    def predict(self, images: Tensor) -> Tensor:
        """Online predictions q(F_o(v)), (B, D), of images (B, 3, H, W) in [0, 1]."""
        predictions: Tensor = self.predictor(self.online(images))
        return predictions

    @torch.no_grad()
    def project(self, images: Tensor) -> Tensor:
        """Target features F_t(v), (B, D), of images (B, 3, H, W) in [0, 1]; no gradient."""
        features: Tensor = self.target(images)
        return features

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move every target parameter θ' to momentum · θ' + (1 − momentum) · θ.

        Batch-norm statistics are left alone: the target collects its own from the views it sees.
        """
        target = [parameter.data for parameter in self.target.parameters()]
        online = [parameter.data for parameter in self.online.parameters()]
        torch._foreach_lerp_(target, online, 1 - momentum)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """BYOL's head: Linear → BatchNorm → ReLU → Linear."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def network_from(description: Mapping[str, object]) -> Network:
    """Build a network from the description that is stored beside its weights (the arguments of `Network`)."""
    return Network(**description)  # type: ignore[arg-type]


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or inputs != planes:
        downsample = nn.Sequential(
            nn.Conv2d(inputs, planes, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(planes)
        )
    first = BasicBlock(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))
