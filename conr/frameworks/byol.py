"""BYOL (Grill et al., NeurIPS 2020), the framework of the paper: a predictor and a moving-average target."""

from torch import Tensor, nn

from conr.frameworks import Framework
from conr.losses.concordance import instance_concordance, symmetrized
from conr.models.heads import mlp
from conr.models.siamese import Outputs


class Byol(Framework):
    """Instance concordance (Eq. 1)."""

    @staticmethod
    def projector(inputs: int, hidden: int, dimension: int) -> nn.Module:
        """Linear → BatchNorm → ReLU → Linear."""
        return mlp(inputs, hidden, dimension)

    @staticmethod
    def predictor(dimension: int, hidden: int, init_std: float) -> nn.Module:
        """The same, with small initial weights."""
        predictor = mlp(dimension, hidden, dimension)
        for module in predictor.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=init_std)
        return predictor

    def instance_loss(self, outputs: Outputs) -> Tensor:
        """−cos(prediction of a view, target of the other), both directions added; in [−2, 2]."""
        return symmetrized(instance_concordance, outputs.unit_predictions, outputs.unit_targets)


FRAMEWORK = Byol
