"""SimSiam (Chen & He, CVPR 2021): a predictor, and the online network itself as the target, without gradient."""

from torch import nn

from conr.frameworks.byol import Byol
from conr.models.heads import deep_mlp

BOTTLENECK = 4  # the predictor's hidden layer has a quarter of the features' length


class SimSiam(Byol):
    """BYOL's loss, with a stop-gradient instead of the moving average."""

    moving_average = False

    @staticmethod
    def projector(inputs: int, hidden: int, dimension: int) -> nn.Module:
        """Three linear layers, each with BatchNorm; the last one without an affine map or a ReLU."""
        return deep_mlp(inputs, hidden, dimension).append(nn.BatchNorm1d(dimension, affine=False))

    @staticmethod
    def predictor(dimension: int, hidden: int, init_std: float) -> nn.Module:
        """A bottleneck of a quarter of the features' length; hidden and init_std are BYOL's."""
        narrow = max(dimension // BOTTLENECK, 1)
        return nn.Sequential(
            nn.Linear(dimension, narrow, bias=False),
            nn.BatchNorm1d(narrow),
            nn.ReLU(inplace=True),
            nn.Linear(narrow, dimension),
        )


FRAMEWORK = SimSiam
