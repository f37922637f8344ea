"""How many operations a training step launches: on a GPU each of them is at least one kernel."""

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


class OneStep(Observer):
    """Counts the launches of the second step of a training, in which the optimizer has its state; ends it then.

    Raises:
        StepCountedError: with the count.
    """

    def __init__(self) -> None:
        self.launches: Launches | None = None

    def step_done(self, amount: int = 1, note: str = "") -> None:
        if self.launches is None:
            self.launches = Launches()
            self.launches.__enter__()
        else:
            self.launches.__exit__(None, None, None)
            raise StepCountedError(self.launches.count)


class StepCountedError(Exception):
    """The step is over."""
