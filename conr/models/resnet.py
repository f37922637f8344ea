"""torchvision's ResNets without a classifier, of any width, with a stem for small images."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

BLOCKS_PER_STAGE = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class Encoder(nn.Module):
    """torchvision's ResNet-18 or ResNet-34 without its classifier, of any width, with a stem for small images.

    At width 64 it has the parameter names, the initialization and the outputs of `torchvision.models.resnet18`.

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
        blocks = BLOCKS_PER_STAGE[architecture]
        self.layer1 = _stage(width, width, blocks[0], stride=1)
        self.layer2 = _stage(width, 2 * width, blocks[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.features = 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalized images to (B, 8 · width) pooled features."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)


def _stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1:
        convolution = nn.Conv2d(inputs, planes, kernel_size=1, stride=stride, bias=False)
        shortcut = nn.Sequential(convolution, nn.BatchNorm2d(planes))
    first = BasicBlock(inputs, planes, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))
