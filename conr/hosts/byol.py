"""BYOL (Grill et al., NeurIPS 2020), the host of the paper: a predictor and a moving-average target, no negatives."""

from torch import Tensor, nn

from conr.hosts import Host
from conr.networks import Pair, mlp
from conr.objectives import instance_concordance, symmetrised


class Byol(Host):
    """Instance concordance (Eq. 1)."""

    @staticmethod
    def projector(inputs: int, hidden: int, dimension: int) -> nn.Module:
        """Linear → BatchNorm → ReLU → Linear."""
        return mlp(inputs, hidden, dimension)

    @staticmethod
    def predictor(dimension: int, hidden: int, deviation: float) -> nn.Module:
        """The same, with small initial weights."""
        predictor = mlp(dimension, hidden, dimension)
        for module in predictor.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=deviation)
        return predictor

    def instance_loss(self, predictions: Pair, targets: Pair) -> Tensor:
        """−cos(prediction of a view, target of the other), both directions added; in [−2, 2]."""
        return symmetrised(instance_concordance, predictions, targets)


HOST = Byol
