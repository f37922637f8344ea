"""The networks of BYOL and ConNR: a ResNet encoder, a projector, a predictor and a moving-average target."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

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
        encoder: from images to pooled features.
        projector: from pooled features to the features that are clustered.
        mean, std: per channel, of pixels scaled to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        mean: Iterable[float] = (0.5, 0.5, 0.5),
        std: Iterable[float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images with pixels in [0, 1] to (B, D) features, not yet normalised."""
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.projector(self.encoder(normalised))
        return features


Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Outputs:
    """What the networks make of two views of a batch: for each view a (B, D) tensor.

    Attributes:
        projections: online features F_o(v).
        predictions: online predictions q(F_o(v)).
        targets: target features F_t(v), without gradient.
    """

    projections: Pair
    predictions: Pair
    targets: Pair


class Siamese(nn.Module):
    """The two networks of BYOL: online (with a predictor) and target, which follows it and takes no gradient.

    Args:
        network: the online network; the target starts as its copy.
        predictor: from features to predictions.
        moving_average: the target is a moving average; if False it is the online network itself (SimSiam).
        shuffles_target: the target sees the samples of a batch in another order than the online network, so that
            groups of batch-norm statistics differ. Outputs keep their places.
    """

    def __init__(
        self, network: Network, predictor: nn.Module, moving_average: bool = True, shuffles_target: bool = False
    ) -> None:
        super().__init__()
        self.online = network
        self.predictor = predictor
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.moving_average = moving_average
        self.shuffles_target = shuffles_target

    def forward(self, first: Tensor, second: Tensor, generator: torch.Generator, noise: float = 0.0) -> Outputs:
        """Features, predictions and targets of two views.

        Args:
            first, second: (B, 3, H, W) in [0, 1].
            generator: of the noise and of the target's order.
            noise: standard deviation of what is added to the online features before the predictor.
        """
        projections = self.online(first), self.online(second)
        inputs = [features if noise == 0 else _with_noise(features, noise, generator) for features in projections]
        predictions = self.predictor(inputs[0]), self.predictor(inputs[1])
        if not self.moving_average:
            targets = projections[0].detach(), projections[1].detach()
        elif self.shuffles_target:
            order = torch.randperm(len(first), device=first.device, generator=generator)
            targets = self._project_in_order(first, order), self._project_in_order(second, order)
        else:
            targets = self.project(first), self.project(second)
        return Outputs(projections, predictions, targets)

    @torch.no_grad()
    def project(self, images: Tensor) -> Tensor:
        """Target features F_t(v), (B, D), of images (B, 3, H, W) in [0, 1]; no gradient."""
        features: Tensor = self.target(images)
        return features

    def _project_in_order(self, images: Tensor, order: Tensor) -> Tensor:
        features = self.project(images[order])
        return torch.empty_like(features).index_copy_(0, order, features)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move every target parameter θ' to momentum · θ' + (1 − momentum) · θ.

        A moving average leaves batch-norm statistics alone: the target collects its own from the views it sees. A
        target that is the online network takes over everything.
        """
        if not self.moving_average:
            torch._foreach_copy_(list(self.target.state_dict().values()), list(self.online.state_dict().values()))
            return
        target = [parameter.data for parameter in self.target.parameters()]
        online = [parameter.data for parameter in self.online.parameters()]
        torch._foreach_lerp_(target, online, 1 - momentum)


class GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose statistics in training are those of groups of samples, as on one of several GPUs.

    Running statistics are updated by each group in turn. In evaluation it is plain batch normalisation.

    Args:
        plain: the layer to take the place of; its parameters and buffers are shared.
        group: samples that share statistics, in the order of the batch.
    """

    def __init__(self, plain: nn.modules.batchnorm._BatchNorm, group: int) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        self.weight, self.bias = plain.weight, plain.bias
        for name, buffer in plain.named_buffers():
            self.register_buffer(name, buffer)
        self.group = group

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W)."""
        if not self.training or len(input) <= self.group:
            return super().forward(input)
        return torch.cat([super(GroupedBatchNorm, self).forward(part) for part in torch.split(input, self.group)])

    def _check_input_dim(self, input: Tensor) -> None:
        """Any: the layer it stands for was made for its input."""


def group_batch_norm(module: nn.Module, group: int) -> None:
    """Replace every batch normalisation inside a module, in place; 0 leaves all as it is."""
    if group == 0:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, GroupedBatchNorm(child, group))
        else:
            group_batch_norm(child, group)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """BYOL's head: Linear → BatchNorm → ReLU → Linear."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def deep_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """The projector of SimSiam and Barlow Twins: Linear → BatchNorm → ReLU, twice, → Linear; no biases."""
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=False),
    )


def _with_noise(features: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(features.shape, device=features.device, generator=generator)
    return features + deviation * noise


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or inputs != planes:
        downsample = nn.Sequential(
            nn.Conv2d(inputs, planes, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(planes)
        )
    first = BasicBlock(inputs, planes, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))
