"""The operations of a training step: how many it launches (on a GPU each is at least one kernel), its convolutions."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conr import Observer


class Launches(TorchDispatchMode):
    """Counts the operations that write; views and allocations launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **kwargs or {})
        given = _storages((args, kwargs))
        allocates = "empty" in func.overloadpacket.__name__
        self.count += func._schema.is_mutable or (not allocates and bool(_storages(result) - given))
        return result


def _storages(values: object) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tree_leaves(values) if isinstance(tensor, Tensor)}


class Convolutions(TorchDispatchMode):
    """Keeps the convolutions, forward and backward, with what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if "convolution" in func.overloadpacket.__name__:
            self.calls.append((func, args))
        return func(*args, **kwargs or {})

    def repeat(self) -> None:
        """Compute them again, and nothing else."""
        for func, args in self.calls:
            func(*args)


class OneStep(Observer):
    """Watches the operations of the second step of a training, in which the optimizer has its state; ends it then.

    Args:
        mode: what sees the operations.

    Raises:
        StepSeenError: the step is over.
    """

    def __init__(self, mode: TorchDispatchMode) -> None:
        self.mode, self.steps = mode, 0

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.steps += 1
        if self.steps == 1:
            self.mode.__enter__()
        else:
            self.mode.__exit__(None, None, None)
            raise StepSeenError


class StepSeenError(Exception):
    """The step is over."""
