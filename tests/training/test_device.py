"""The training step on a GPU, without one: PyTorch's fake tensors know devices and shapes, and refuse to be read."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from conr.hosts import host_class, names
from conr.parameters import Finetune, FinetuneStage, Host, Neighbourhood, Optimiser, Pretrain, PretrainStage, Views
from conr.progress import Advance
from conr.training import loop
from conr.training.compute import Compute
from conr.training.group import GroupConcordance
from conr.training.instance import InstanceConcordance
from conr.training.loop import Objective, Recipe, train
from conr.training.model import build

GPU = torch.device("cuda")
BATCH, STEPS, CLUSTERS = 8, 2, 4
SHARED: dict[str, Any] = {"optimiser": Optimiser(warmup_epochs=0), "views": Views(rotation=10.0)}
GROUP_TERMS = {"instance": 0.5, "scattering": 0.1, "boost": 0.1, "boost_neighbours": 2}


class StepsDoneError(Exception):
    """Enough steps were made."""


class OnGpu(TorchFunctionMode):
    """Random numbers appear on the GPU: a machine without one cannot make its generators."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        changes = {"device": GPU} if func in (torch.rand, torch.randn, torch.randperm) else {}
        return func(*args, **(kwargs or {}) | changes)


class NoTransfers(TorchDispatchMode):
    """Fails where a tensor moves from one device to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **kwargs or {})
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {tensor.device.type for tensor in (*args[:2], result) if isinstance(tensor, Tensor)}
            assert len(devices) == 1, f"{func} between {devices}"
        return result


@contextmanager
def some_steps(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A progress that ends training before the epoch does: reading the loss once an epoch is allowed."""
    count = itertools.count(1)

    def advance(amount: int, note: str = "") -> None:
        if next(count) == STEPS:
            raise StepsDoneError

    yield advance


def train_on_gpu(
    monkeypatch: pytest.MonkeyPatch, framework: str, objective: Callable[..., Objective], noise: float = 0.0
) -> None:
    """Some steps of `train`, as if on a GPU; raises `StepsDoneError` if nothing waits for it or leaves it."""
    monkeypatch.setattr(loop, "epoch_generator", lambda *_: torch.Generator())
    description = {"architecture": "resnet18", "width": 4, "stem": "cifar", "hidden": 16, "dimension": 8}
    description |= {"bn_group": 0, "predictor_deviation": 0.01, "framework": framework}
    recipe = Recipe("step", 0, 1, 0, BATCH, 0.2, 1.0, 1.0, SHARED["optimiser"], SHARED["views"], noise)
    model = build(description | {"mean": [0.5] * 3, "std": [0.25] * 3})
    with FakeTensorMode(), GPU:
        _move(model)
        images = torch.zeros((STEPS + 1) * BATCH, 8, 8, 3, dtype=torch.uint8)
        compute = Compute(GPU, torch.float32)
        prepared = objective(model, images, compute, host_class(framework)(Host(queue=16)))

        def backward(loss: Tensor) -> None:  # autograd's engine wants a real GPU; what it runs is PyTorch's own
            assert loss.requires_grad
            for parameter in (*model.online.parameters(), *model.predictor.parameters()):
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        with OnGpu(), NoTransfers():
            train(model, images, prepared, recipe, compute, NoCheckpoint(), some_steps)


class NoCheckpoint:
    """Nothing to resume from."""

    def load(self) -> None:
        return None


@pytest.mark.parametrize("framework", names())
def test_no_step_of_pretraining_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    def objective(model: Any, images: Tensor, compute: Compute, host: Any) -> Objective:
        parameters = PretrainStage(**SHARED, pretrain=Pretrain(scattering=0.1, prototypes=CLUSTERS))
        made = InstanceConcordance(model, images, compute, parameters, host, None)
        _give_clusters(made, len(images))
        made.start_epoch = _scatter(made)  # type: ignore[method-assign]
        return made

    with pytest.raises(StepsDoneError):
        train_on_gpu(monkeypatch, framework, objective, noise=0.001)


@pytest.mark.parametrize(("framework", "neighbours"), [*((name, "conaff") for name in names()), ("byol", "local")])
def test_no_step_of_group_concordance_waits_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, framework: str, neighbours: str
) -> None:
    def objective(model: Any, images: Tensor, compute: Compute, host: Any) -> Objective:
        parameters = FinetuneStage(
            **SHARED,
            clusters=CLUSTERS,
            k=4,
            k1=4,
            k2=2,
            neighbourhood=Neighbourhood(neighbours=neighbours),
            finetune=Finetune(**GROUP_TERMS),
        )
        made = GroupConcordance(model, images, compute, parameters, host, None)
        made.label_tensor = torch.zeros(len(images), dtype=torch.int64)
        _give_clusters(made, len(images))
        return made

    with pytest.raises(StepsDoneError):
        train_on_gpu(monkeypatch, framework, objective)


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda loss: loss.item(), DataDependentOutputException),
        (lambda loss: loss.expand(2).nonzero(), DynamicOutputShapeException),
        (lambda loss: loss.cpu(), AssertionError),
        (lambda loss: loss.numpy(), Exception),
        (lambda loss: loss + torch.ones(1, device="cpu"), RuntimeError),
    ],
)
def test_the_check_finds_what_waits(
    monkeypatch: pytest.MonkeyPatch, wait: Callable[[Tensor], object], error: type[Exception]
) -> None:
    class Waiting(InstanceConcordance):
        def loss(self, outputs: Any, indices: Tensor) -> Tensor:
            loss = super().loss(outputs, indices)
            wait(loss.detach())
            return loss

    def objective(model: Any, images: Tensor, compute: Compute, host: Any) -> Objective:
        return Waiting(model, images, compute, PretrainStage(**SHARED), host, None)

    with pytest.raises(error) as found:
        train_on_gpu(monkeypatch, "byol", objective)
    assert found.type is not StepsDoneError


def _move(model: nn.Module) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


def _give_clusters(objective: Any, count: int) -> None:
    objective.pseudo_labels.centroids = torch.zeros(CLUSTERS, 8)
    objective.pseudo_labels.assignments = torch.zeros(count, dtype=torch.int64)


def _scatter(objective: InstanceConcordance) -> Callable[[int], None]:
    def start_epoch(epoch: int) -> None:
        objective.scattering = 0.1

    return start_epoch
