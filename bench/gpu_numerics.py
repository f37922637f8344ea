"""Every kernel path on the device against float64 on the CPU."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from gpu_cases import DEVICE, Case, Row, Size
from gpu_levers import channels_first, compiled, graphed, one_forward
from torch import Tensor

from conr import boundary, clustering, neighbourhood, objectives, prototypes, views
from conr.networks import Siamese
from conr.parameters import Views
from conr.training.compute import Compute
from conr.training.model import build


def numerics_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """Every kernel path on the device against float64 on the CPU."""
    case = next(iter(size.cases.values()))
    cells: dict[str, Callable[[], Row]] = {
        f"views, {pixels} px": partial(views_error, size.samples, pixels)
        for pixels in {other.size: None for other in size.cases.values()}
    }
    for count in (size.samples, 4 * size.samples):
        cells[f"local neighbours, B = {count}"] = partial(
            neighbour_error, count, lambda features: neighbourhood.euclidean(features, 10)
        )
        for k1, k2 in ((10, 2), (30, 10)):
            cells[f"ConAff, B = {count}, k1 = {k1}, k2 = {k2}"] = partial(
                neighbour_error, count, partial(neighbourhood.conaff, k=10, k1=k1, k2=k2)
            )
    cells["boundary ratio"] = partial(boundary_error, size.samples)
    cells["candidates"] = partial(candidates_error, size.samples)
    cells |= {name: partial(loss_error, size.samples, name) for name in LOSSES}
    cells["k-means"] = partial(kmeans_error, 8 * size.samples)
    exact = functools.cache(partial(exact_step, case))
    cells |= {f"step, {name}": partial(step_error, case, variant, exact) for name, variant in variants(size).items()}
    return cells


def compared(error: float, tolerance: float, what: str) -> Row:
    """An error beside what it may be; not a number never passes."""
    return {"error": error, "tolerance": tolerance, "right": "yes" if error <= tolerance else "NO", "measure": what}


@contextmanager
def doubled() -> Iterator[None]:
    """What would become float32 becomes float64: conr's losses and views as their own reference."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def relative(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖."""
    return ((found.cpu().double() - exact).norm() / exact.norm()).item()


def samples(count: int, dimension: int = 256, seed: int = 0) -> Tensor:
    """(count, dimension) float32 around ten centres, as a trained network's features are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, dimension, generator=generator)
    noise = torch.randn(count, dimension, generator=generator)
    return centres[torch.arange(count) % 10] + 1.5 * noise


def views_error(batch: int, pixels: int) -> Row:
    """The same drawn parameters on the device and in float64."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, pixels, pixels, 3), dtype=np.uint8))
    generator = torch.Generator(DEVICE).manual_seed(0)
    drawn = views.draw(batch, pixels, pixels, Views(rotation=15.0), 0.08, generator)
    found = views.apply(views.to_pixels(images.to(DEVICE)), drawn)
    on_host = {field.name: getattr(drawn, field.name).cpu() for field in dataclasses.fields(drawn)}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in on_host.items()}
    with doubled():
        expected = views.apply(views.to_pixels(images), views.ViewParameters(**exact))
    return compared((found.cpu() - expected).abs().max().item(), 1e-3, "largest difference; pixels lie in [0, 1]")


def neighbour_error(batch: int, search: Callable[[Tensor], Tensor]) -> Row:
    """float32 may decide a near tie otherwise."""
    features = samples(batch)
    differs = (search(features.to(DEVICE)).cpu() != search(features.double())).any(1)
    return compared(differs.double().mean().item(), 0.01, "share of samples with another neighbour: near ties")


def boundary_error(batch: int) -> Row:
    """Largest difference of the ratio."""
    features, centroids, labels = F.normalize(samples(batch), dim=1), F.normalize(samples(10, seed=1), dim=1), None
    labels = torch.cdist(features, centroids).argmin(1)
    found = boundary.boundary_ratio(features.to(DEVICE), labels.to(DEVICE), centroids.to(DEVICE))
    exact = boundary.boundary_ratio(features.double(), labels, centroids.double())
    return compared((found.cpu() - exact).abs().max().item(), 1e-5, "largest difference; ratios lie in [0, 2]")


def candidates_error(batch: int) -> Row:
    """The same ones of the same ratios, with ties."""
    ratio = torch.rand(batch, generator=torch.Generator().manual_seed(0)).mul(50).round() / 50
    differ = boundary.candidates(ratio.to(DEVICE), 0.8).cpu() != boundary.candidates(ratio, 0.8)
    return compared(differ.double().sum().item(), 0.0, "candidates that differ")


LOSSES: dict[str, Callable[..., Tensor]] = {
    "instance concordance": lambda online, target, members, near, kept: objectives.instance_concordance(online, target),
    "group concordance": lambda online, target, members, near, kept: objectives.group_concordance(
        online, target, near, kept
    ),
    "prototype scattering": lambda online, target, members, near, kept: prototypes.prototype_scattering(
        online, target, members.float(), 0.5
    ),
    "group compactness": lambda online, target, members, near, kept: prototypes.group_compactness(
        online, target, members.float()
    ),
}


def loss_error(batch: int, name: str) -> Row:
    """Loss and gradient."""
    online, target = samples(batch), samples(batch, seed=1)
    near = neighbourhood.euclidean(target, 10)
    others = F.one_hot(torch.arange(batch) % 10, 10), near, torch.arange(batch) % 5 > 0

    def both(online: Tensor, device: torch.device) -> list[Tensor]:
        online = online.to(device).detach().requires_grad_()
        loss = LOSSES[name](online, target.to(device, online.dtype), *(other.to(device) for other in others))
        loss.backward()
        return [loss.detach(), online.grad]

    found = both(online, DEVICE)
    with doubled():
        exact = both(online.double(), torch.device("cpu"))
    return compared(max(map(relative, found, exact)), 1e-5, "larger of the relative errors of loss and gradient")


def kmeans_error(count: int) -> Row:
    """The clusters that k-means ends with, from the same start."""
    features = F.normalize(samples(count), dim=1)
    start = features[:10].clone()
    _, assignments, _ = clustering.kmeans_tensors(features.to(DEVICE), 10, seed=0, start=start.to(DEVICE))
    found = assignments.cpu()
    centroids, exact = start.double(), torch.empty(0)
    for _ in range(100):
        exact = (features.double() @ centroids.T).argmax(1)
        centroids = F.normalize(F.one_hot(exact, 10).double().T @ features.double(), dim=1)
    return compared((found != exact).double().mean().item(), 0.001, "share of samples in another cluster")


@dataclass(frozen=True)
class Tolerance:
    """Of relative errors: those of a fresh ResNet, whose features are nearly alike, are magnified by batch norm."""

    predictions: float
    gradient: float


FLOAT32, TF32, BFLOAT16 = Tolerance(1e-3, 0.02), Tolerance(0.03, 0.2), Tolerance(0.15, 0.7)


@dataclass(frozen=True)
class Variant:
    """How to compute a step.

    Attributes:
        precision: of the forward pass.
        tolerance: of its result; FLOAT32 keeps TF32 out of convolutions.
        change: what to do with the model before.
    """

    precision: torch.dtype
    tolerance: Tolerance
    change: Callable[[Siamese, int], None] = lambda model, batch: None


def variants(size: Size) -> dict[str, Variant]:
    """Number formats and levers under which a whole step is computed."""
    compile_all, graph_all = partial(compiled, size.backend), partial(graphed, size.backend)
    return {
        "float32, no TF32": Variant(torch.float32, FLOAT32),
        "float32, no TF32, both views in one forward": Variant(torch.float32, FLOAT32, one_forward),
        "float32, no TF32, channels first": Variant(torch.float32, FLOAT32, channels_first),
        "float32, no TF32, compiled": Variant(torch.float32, FLOAT32, compile_all),
        "float32": Variant(torch.float32, TF32),
        "bfloat16": Variant(torch.bfloat16, BFLOAT16),
        "bfloat16, compiled": Variant(torch.bfloat16, BFLOAT16, compile_all),
        "bfloat16, CUDA graphs": Variant(torch.bfloat16, BFLOAT16, graph_all),
    }


STEP = 32  # images in the step that is compared
Step = tuple[Tensor, Tensor]  # predictions and gradient of all parameters


def fresh(case: Case) -> tuple[Siamese, Tensor]:
    """Networks and two views, always the same."""
    torch.manual_seed(0)
    return build(case.description()), torch.rand(2, STEP, 3, case.size, case.size)


def step(model: Siamese, images: Tensor, compute: Compute) -> Step:
    """A whole forward and backward pass of both views with the instance loss."""
    model.zero_grad(set_to_none=True)
    with compute.autocast():
        outputs = model(images[0], images[1], torch.Generator())
    objectives.symmetrised(objectives.instance_concordance, outputs.predictions, outputs.targets).backward()
    gradients = [parameter.grad for parameter in (*model.online.parameters(), *model.predictor.parameters())]
    return torch.cat(outputs.predictions).detach(), torch.cat([gradient.flatten() for gradient in gradients])


def exact_step(case: Case) -> Step:
    """In float64 on the CPU."""
    model, images = fresh(case)
    with doubled():
        return step(model.double(), images.double(), Compute(torch.device("cpu"), torch.float32))


def step_error(case: Case, variant: Variant, exact: Callable[[], Step]) -> Row:
    """The third step with the same weights: CUDA graphs are warmed up in the first, made in the second, then used."""
    model, images = fresh(case)
    model.to(DEVICE).to(memory_format=torch.channels_last)
    variant.change(model, STEP)
    images = images.to(DEVICE)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=variant.tolerance is not FLOAT32):
        for _ in range(3):
            found = step(model, images, Compute(DEVICE, variant.precision))
    predictions, gradient = map(relative, found, exact())
    tolerance = variant.tolerance
    what = f"relative error of the predictions; of the gradient {gradient:.2g}, may be {tolerance.gradient}"
    row = compared(predictions, tolerance.predictions, what)
    return row if gradient <= tolerance.gradient else row | {"right": "NO"}
