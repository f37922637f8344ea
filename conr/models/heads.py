"""The heads that frameworks put on an encoder."""

from torch import nn


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
