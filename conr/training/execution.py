"""How the steps of a training are executed. What they compute is the same, up to rounding."""

import warnings
from dataclasses import dataclass

import torch

from conr.errors import Note
from conr.models.world import World
from conr.parameters import Training


@dataclass(frozen=True)
class Execution:
    """Ways to make a step faster. Without any of them every operation is launched by itself, in PyTorch's eager mode.

    Attributes:
        graph: record a step once as a CUDA graph and replay it.
        compiled: compile views and networks, which fuses operations.
        one_forward: both views go through a network as one batch; batch-norm statistics stay those of each view.
        fused_optimizer: one operation updates all weights.
    """

    graph: bool = False
    compiled: bool = False
    one_forward: bool = False
    fused_optimizer: bool = False

    @classmethod
    def choose(cls, device: torch.device, settings: Training) -> "Execution":
        """The fastest for a device, as the parameters allow.

        Several processes record nothing: no GPU has shown yet that this works. A note says so.
        """
        if device.type != "cuda":
            return cls()
        if World.current().size > 1:
            if settings.graph == "auto":
                warnings.warn(
                    Note("several processes launch every operation by itself (as training.graph: off)"), stacklevel=2
                )
            return cls(fused_optimizer=True)
        recorded = settings.graph == "auto"
        return cls(graph=recorded, compiled=recorded, one_forward=True, fused_optimizer=True)
