"""Self-supervised frameworks that ConNR can refine, one file each.

A framework decides the heads of the networks, what the target network is, and the instance loss. Group concordance is
the same on all of them. To add one, add a file with a `Framework` named `FRAMEWORK`: the file's name (hyphens for
underscores) is then a value of `framework.name`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # the command line reads the names; PyTorch would slow its help down
    from torch import Tensor, nn

    from conr.models.siamese import Outputs
    from conr.parameters.groups import Framework as Settings


class Framework(ABC):
    """What a framework adds to the shared encoder, views and training loop.

    Args:
        settings: the hyperparameters of all frameworks.

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
    def predictor(dimension: int, hidden: int, init_std: float) -> nn.Module:
        """From online features to predictions, both (B, dimension); an identity if the framework has none."""

    @abstractmethod
    def instance_loss(self, outputs: Outputs) -> Tensor:
        """The framework's loss of two views of a batch, both directions included; a scalar."""

    def enqueue(self, outputs: Outputs) -> None:  # noqa: B027 (most frameworks have no queue)
        """Keep what later batches need of this one, after its backward pass; in place from the second time on."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restore the tensors of an interrupted run."""


def names() -> list[str]:
    """The values of `framework.name`: the files of this folder."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def framework_class(name: str) -> type[Framework]:
    """A framework by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in names():
        raise ValueError(f"the framework must be one of {', '.join(names())}, not {name!r}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    found: type[Framework] = module.FRAMEWORK
    return found
