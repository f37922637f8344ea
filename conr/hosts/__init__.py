"""Self-supervised frameworks that can host ConNR, one file each.

A host decides the heads of the networks, what the target network is, and the instance loss. Group concordance is the
same on all of them. To add one, add a file with a `Host` named `HOST`: the file's name (hyphens for underscores) is
then a value of `host.framework`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # the command line reads the names; PyTorch would slow its help down
    from torch import Tensor, nn

    from conr.networks import Pair
    from conr.parameters import Host as Settings


class Host(ABC):
    """What a framework adds to the shared encoder, views and training loop.

    Args:
        settings: the parameters of all hosts.

    Attributes:
        moving_average: the target network follows the online one as a moving average; if False it is the online
            network itself, without gradient.
        needs_instance_loss: only this loss keeps the features from collapsing, so it must stay in stage 2.
    """

    moving_average: ClassVar[bool] = True
    needs_instance_loss: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @staticmethod
    @abstractmethod
    def projector(inputs: int, hidden: int, dimension: int) -> nn.Module:
        """From (B, inputs) pooled features to (B, dimension) features."""

    @staticmethod
    @abstractmethod
    def predictor(dimension: int, hidden: int, deviation: float) -> nn.Module:
        """From online features to predictions, both (B, dimension); an identity if the framework has none."""

    @abstractmethod
    def instance_loss(self, predictions: Pair, targets: Pair) -> Tensor:
        """The framework's loss of two views of a batch, both directions together.

        Args:
            predictions: online predictions of view 1 and view 2, each (B, D).
            targets: target features of view 1 and view 2, each (B, D), without gradient.

        Returns:
            A scalar.
        """

    def remember(self, targets: Pair) -> None:  # noqa: B027 (most hosts have no memory)
        """Take note of a batch after its loss."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take over the tensors of an interrupted run."""


def names() -> list[str]:
    """The values of `host.framework`: the files of this folder."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def host_class(framework: str) -> type[Host]:
    """The host of a framework, by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if framework not in names():
        raise ValueError(f"framework must be one of {', '.join(names())}, not {framework!r}")
    module = importlib.import_module(f"{__name__}.{framework.replace('-', '_')}")
    found: type[Host] = module.HOST
    return found
