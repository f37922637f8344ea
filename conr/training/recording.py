"""A training step as a CUDA graph: recorded once and replayed, so that a GPU does not wait for Python."""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

from conr.errors import Note, one_line

WARM_UP = 3  # steps before one is recorded: in them libraries choose their algorithms, and buffers are made


class Step(Protocol):
    """What can be recorded: a call reads and writes tensors that stay where they are."""

    generators: list[torch.Generator]

    @property
    def key(self) -> Hashable:
        """Whatever Python decides within a call: a record is valid for one key."""

    def __call__(self) -> None:
        """Make a step."""


class Recorder(Protocol):
    """How a step is recorded."""

    def warm_up(self, step: Step) -> None:
        """Make a step in the way in which it will be recorded."""

    def record(self, step: Step) -> Callable[[], None]:
        """Record a step without making it; the result makes it."""


class CudaRecorder:
    """CUDA graphs. All of a training share the memory for what a step computes on the way."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Step) -> None:
        """Make a step on a stream of its own."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, step: Step) -> Callable[[], None]:
        """Capture a step; each replay takes new numbers from its generators."""
        graph = torch.cuda.CUDAGraph()
        for generator in step.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            step()
        replay: Callable[[], None] = graph.replay
        return replay


class RecordedStep:
    """Makes the steps of a training: the first ones of each key as they are, all others from a record.

    Where recording fails, a note says why, and all are made as they are.

    Args:
        step: to make.
        recorder: how to record it.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self.step, self.recorder = step, recorder
        self._records: dict[Hashable, Callable[[], None]] = {}
        self._made: Counter[Hashable] = Counter()
        self._fails = False

    def __call__(self) -> None:
        """Make a step."""
        key = self.step.key
        if not self._fails and key not in self._records and self._made[key] == WARM_UP:
            self._record(key)
        if key in self._records:
            self._records[key]()
        elif self._fails:
            self.step()
        else:
            self._made[key] += 1
            self.recorder.warm_up(self.step)

    def _record(self, key: Hashable) -> None:
        generators = self.step.generators
        states = [generator.get_state() for generator in generators]
        try:
            self._records[key] = self.recorder.record(self.step)
        except Exception as error:  # PyTorch and CUDA raise errors of many classes
            self._fails = True
            self._records.clear()
            # New ones: those of a record that was not finished may refuse to be used outside of it.
            generators[:] = [torch.Generator(generator.device) for generator in generators]
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            message = f"a training step cannot be recorded as a CUDA graph, so training takes longer: {one_line(error)}"
            warnings.warn(Note(message), stacklevel=3)
