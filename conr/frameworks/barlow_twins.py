"""Barlow Twins (Zbontar et al., ICML 2021): features of two views agree and are uncorrelated with each other."""

import torch
from torch import Tensor, nn

from conr.frameworks import Framework
from conr.models.heads import deep_mlp
from conr.models.siamese import Outputs

EPSILON = 1e-5  # as batch normalization


class BarlowTwins(Framework):
    """Redundancy reduction; gradients flow through both views, so stage 1 uses no target."""

    moving_average = False
    needs_instance_loss = True

    @staticmethod
    def projector(inputs: int, hidden: int, dimension: int) -> nn.Module:
        """Three linear layers, the first two with BatchNorm and ReLU."""
        return deep_mlp(inputs, hidden, dimension)

    @staticmethod
    def predictor(dimension: int, hidden: int, init_std: float) -> nn.Module:
        """None: the loss compares the online features."""
        return nn.Identity()

    def instance_loss(self, outputs: Outputs) -> Tensor:
        """The loss of the paper, divided by D so that its size does not depend on the length of the features."""
        return redundancy_reduction(*outputs.predictions, self.settings.redundancy)


def redundancy_reduction(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Σ_i (1 − C_ii)² + weight · Σ_{i≠j} C_ij², over D, of the cross-correlation C of two views.

    Args:
        first, second: (B, D) features of the views.
        weight: of the terms off the diagonal.

    Returns:
        A scalar.
    """
    first, second = _standardized(first.float()), _standardized(second.float())
    correlation = first.T @ second / len(first)
    diagonal = correlation.diagonal()
    on = (1 - diagonal).square().sum()
    off = correlation.square().sum() - diagonal.square().sum()
    return (on + weight * off) / first.shape[1]


def _standardized(features: Tensor) -> Tensor:
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    return (features - mean) / (variance + EPSILON).sqrt()


FRAMEWORK = BarlowTwins
