"""CUDA graphs on a CPU: operations are written down as they are called, and called again on the same tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """What a graph would hold: operations with their tensors and numbers, and the tensors that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        results = func(*args, **kwargs or {})
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        # A view stays one: nothing has to be called again for it. What is written in place is among the arguments.
        new = [tensor for tensor in tensors(results) if tensor.untyped_storage().data_ptr() not in given]
        if new or func._schema.is_mutable:
            self.calls.append((func, args, kwargs or {}, new))
        return results

    def replay(self) -> None:
        """Call everything again."""
        for func, args, kwargs, new in self.calls:
            again = tensors(func(*args, **kwargs))
            for tensor, value in zip(new, again[-len(new) :] if new else [], strict=True):
                tensor.copy_(value)


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class CpuRecorder:
    """Records a step as a GPU does, but that it is made at once: its first replay does nothing.

    Attributes:
        records: how many there are.
        replays: how often they were replayed.
    """

    def __init__(self) -> None:
        self.records, self.replays = 0, 0

    def warm_up(self, step: Callable[[], None]) -> None:
        step()

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        recording, made = Recording(), self.replays
        self.records += 1
        with recording:
            step()

        def replay() -> None:
            self.replays += 1
            if self.replays > made + 1:
                with torch.no_grad():
                    recording.replay()

        return replay
