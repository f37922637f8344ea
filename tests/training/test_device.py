"""The training step on a GPU, without one: PyTorch's fake tensors know devices and shapes, and refuse to be read."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from small_networks import small_spec
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from conr.frameworks import names
from conr.observer import Observer
from conr.parameters import FinetuneStage, Optimizer, PretrainStage, Views
from conr.parameters.groups import Finetune, Framework, Neighborhood, Pretrain
from conr.refinement.objective import Refinement
from conr.training.compute import Compute
from conr.training.execution import Execution
from conr.training.loop import train
from conr.training.objective import Context, Objective
from conr.training.pretraining import Pretraining
from conr.training.recipe import Recipe

GPU = torch.device("cuda")
BATCH, STEPS, CLUSTERS = 8, 2, 4
EXECUTION = Execution(one_forward=True, fused_optimizer=True)
SHARED: dict[str, Any] = {"optimizer": Optimizer(warmup_epochs=0), "views": Views(rotation=10.0)}
GROUP_TERMS = {"instance": 0.5, "scattering": 0.1, "boost": 0.1, "boost_neighbors": 2}


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
        if func is torch.ops.aten._fused_sgd_.tensor_lr:  # has no fake kernel; it writes to what it is given
            return None
        result = func(*args, **kwargs or {})
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {tensor.device.type for tensor in (*args[:2], result) if isinstance(tensor, Tensor)}
            assert len(devices) == 1, f"{func} between {devices}"
        return result


class SomeSteps(Observer):
    """Ends training before the epoch does: reading the loss once an epoch is allowed."""

    def __init__(self) -> None:
        self.count = itertools.count(1)

    def step_done(self, amount: int = 1, note: str = "") -> None:
        if next(self.count) == STEPS:
            raise StepsDoneError


def train_on_gpu(
    monkeypatch: pytest.MonkeyPatch,
    framework: str,
    objective: Callable[[Context], Objective],
    noise_std: float = 0.0,
) -> None:
    """Some steps of `train`, as if on a GPU; raises `StepsDoneError` if nothing waits for it or leaves it."""
    new_generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda *_: new_generator())  # there is none on a GPU without one
    settings = Pretrain(epochs=1, batch_size=BATCH, crop_scale=0.2, predictor_lr_scale=1.0)
    recipe = Recipe("step", 0, settings, **SHARED, noise_std=noise_std)
    model, observer = small_spec(framework=framework).build(), SomeSteps()
    with FakeTensorMode(), GPU:
        _move(model)
        images = torch.zeros((STEPS + 1) * BATCH, 8, 8, 3, dtype=torch.uint8)
        context = Context(model, images, None, Compute(GPU, torch.float32), observer)
        prepared = objective(context)

        def backward(loss: Tensor) -> None:  # autograd's engine wants a real GPU; what it runs is PyTorch's own
            assert loss.requires_grad
            for parameter in (*model.online.parameters(), *model.predictor.parameters()):
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        with OnGpu(), NoTransfers():
            train(prepared, recipe, NoCheckpoint(), EXECUTION)


class NoCheckpoint:
    """Nothing to resume from."""

    def load(self) -> None:
        return None


@pytest.mark.parametrize("framework", names())
def test_no_step_of_pretraining_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch, framework: str) -> None:
    def objective(context: Context) -> Objective:
        settings = Pretrain(scattering=0.1, prototypes=CLUSTERS)
        parameters = PretrainStage(**SHARED, framework=Framework(name=framework, queue=16), pretrain=settings)
        made = Pretraining(context, parameters)
        _give_clusters(made, len(context.images))
        assert [term.name for term in made.terms] == ["instance", "scattering"]
        return made

    with pytest.raises(StepsDoneError):
        train_on_gpu(monkeypatch, framework, objective, noise_std=0.001)


@pytest.mark.parametrize(("framework", "neighbors"), [*((name, "conaff") for name in names()), ("byol", "local")])
def test_no_step_of_group_concordance_waits_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, framework: str, neighbors: str
) -> None:
    def objective(context: Context) -> Objective:
        parameters = FinetuneStage(
            **SHARED,
            clusters=CLUSTERS,
            k=4,
            k1=4,
            k2=2,
            framework=Framework(name=framework, queue=16),
            neighborhood=Neighborhood(neighbors=neighbors),
            finetune=Finetune(**GROUP_TERMS),
        )
        made = Refinement(context, parameters)
        assert [term.name for term in made.terms] == ["group", "instance", "scattering", "boost"]
        made.terms[0].labels = torch.zeros(len(context.images), dtype=torch.int64)  # type: ignore[attr-defined]
        _give_clusters(made, len(context.images))
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
    class Waiting(Pretraining):
        def loss(self, outputs: Any, indices: Tensor) -> Tensor:
            loss = super().loss(outputs, indices)
            wait(loss.detach())
            return loss

    def objective(context: Context) -> Objective:
        return Waiting(context, PretrainStage(**SHARED))

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


def _give_clusters(objective: Objective, count: int) -> None:
    """Clusters, and no k-means: it reads how far it has come."""
    objective.pseudo_labels.centroids = torch.zeros(CLUSTERS, 8)
    objective.pseudo_labels.assignments = torch.zeros(count, dtype=torch.int64)
    objective.pseudo_labels.update = lambda: torch.empty(0)  # type: ignore[method-assign]
