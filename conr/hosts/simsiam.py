"""SimSiam (Chen & He, CVPR 2021): a predictor, and the online network itself as the target, without gradient."""

from torch import Tensor, nn

from conr.hosts import Host
from conr.networks import Pair, deep_mlp
from conr.objectives import instance_concordance, symmetrised

BOTTLENECK = 4  # the predictor's hidden layer has a quarter of the features' length


class SimSiam(Host):
    """Instance concordance with a stop-gradient in place of the moving average."""

    moving_average = False

    @staticmethod
    def projector(inputs: int, hidden: int, dimension: int) -> nn.Module:
        """Three linear layers, each with BatchNorm; the last one without an affine map or a ReLU."""
        return deep_mlp(inputs, hidden, dimension).append(nn.BatchNorm1d(dimension, affine=False))

    @staticmethod
    def predictor(dimension: int, hidden: int, deviation: float) -> nn.Module:
        """A bottleneck of a quarter of the features' length; hidden and deviation are BYOL's."""
        narrow = max(dimension // BOTTLENECK, 1)
        return nn.Sequential(
            nn.Linear(dimension, narrow, bias=False),
            nn.BatchNorm1d(narrow),
            nn.ReLU(inplace=True),
            nn.Linear(narrow, dimension),
        )

    def instance_loss(self, predictions: Pair, targets: Pair) -> Tensor:
        """−cos(prediction of a view, features of the other), both directions added; in [−2, 2]."""
        return symmetrised(instance_concordance, predictions, targets)


HOST = SimSiam
