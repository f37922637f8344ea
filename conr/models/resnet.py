"""torchvision's ResNets without a classifier, of any width, with a stem for small images."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchvision.models.resnet import BasicBlock, Bottleneck

BLOCKS_PER_STAGE = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
BOTTLENECKS = {"resnet50"}  # built of Bottleneck, the others of BasicBlock


class Encoder(nn.Module):
    """torchvision's ResNet-18, 34 or 50 without its classifier, of any width, with a stem for small images.

    At width 64 it has the parameter names, the initialization and the outputs of `torchvision.models.resnet18`.

    Args:
        architecture: "resnet18", "resnet34" or "resnet50".
        width: channels of the first stage; they double with each of the four stages (64 in the paper). The outputs of
            a stage of ResNet-50 are four times as wide.
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
        from torchvision.models.resnet import BasicBlock, Bottleneck  # takes more than a second; not all stages need it

        block: type[BasicBlock | Bottleneck] = Bottleneck if architecture in BOTTLENECKS else BasicBlock
        counts = BLOCKS_PER_STAGE[architecture]
        self.layer1 = _stage(block, width, width, counts[0], stride=1)
        self.layer2 = _stage(block, block.expansion * width, 2 * width, counts[1], stride=2)
        self.layer3 = _stage(block, block.expansion * 2 * width, 4 * width, counts[2], stride=2)
        self.layer4 = _stage(block, block.expansion * 4 * width, 8 * width, counts[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.features = block.expansion * 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalized images to (B, `features`) pooled features: 8 · width, of ResNet-50 32 · width."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)


class _Strided(nn.Conv2d):
    """A convolution with a stride, which is 1 for maps of one pixel: that gives the same output.

    In bfloat16, oneDNN 3 leaves parts of the weights' gradient unset for such maps and a stride of 2.

    Args:
        plain: the layer to replace; its weights are shared.
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        with torch.device("meta"):  # draws no random numbers
            super().__init__(
                plain.in_channels,
                plain.out_channels,
                plain.kernel_size,  # type: ignore[arg-type]
                plain.stride,  # type: ignore[arg-type]
                plain.padding,  # type: ignore[arg-type]
                bias=False,
            )
        self.weight = plain.weight

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        stride = 1 if input.shape[2:] == (1, 1) else self.stride
        return F.conv2d(input, self.weight, None, stride, self.padding)


def _stage(block: "type[BasicBlock | Bottleneck]", inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = block.expansion * planes
    shortcut, strided = None, "conv1" if block.expansion == 1 else "conv2"
    if stride != 1 or inputs != outputs:
        convolution = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
    first = block(inputs, planes, stride, shortcut)
    if stride != 1:
        setattr(first, strided, _Strided(getattr(first, strided)))
    return nn.Sequential(first, *(block(outputs, planes) for _ in range(blocks - 1)))
