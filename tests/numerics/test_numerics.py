"""Every kernel path on the device, a GPU if there is one, against float64 on the CPU.

On a CPU the networks and batches are small; on a GPU they are those of CIFAR-10's preset.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conr.clustering.kmeans import kmeans_tensors
from conr.losses.concordance import instance_concordance, symmetrized
from conr.losses.prototypes import prototype_scattering
from conr.models.siamese import Outputs, Siamese, to_pixels
from conr.neighbors.boundary import boundary_ratio, candidates
from conr.neighbors.conaff import conaff, euclidean
from conr.neighbors.settings import ConAff
from conr.parameters import Views
from conr.refinement.confidence import group_compactness
from conr.refinement.group import group_concordance
from conr.training.compute import Compute
from conr.training.views import ViewParameters, apply, draw
from conr.training.weights import ModelSpec

pytestmark = pytest.mark.numerics

ON_GPU = torch.cuda.is_available()
DEVICE, CPU = torch.device("cuda" if ON_GPU else "cpu"), torch.device("cpu")
SPEC = ModelSpec() if ON_GPU else ModelSpec(width=4, hidden=32, dimension=16)
SIZE = 32 if ON_GPU else 16  # pixels of the images of a step
SAMPLES = 256 if ON_GPU else 64  # of a batch
STEP = 32  # images in the step that is compared


@contextmanager
def doubled() -> Iterator[None]:
    """What would become float32 becomes float64: conr's losses and views as their own reference."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(Tensor, "float", Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


Within = Callable[[str, float, float], None]


@pytest.fixture
def within(record_property: Callable[[str, object], None]) -> Within:
    """Asserts that an error is at most a bound, and records it for bench/gpu.py."""

    def check(name: str, error: float, bound: float) -> None:
        record_property(name, error)
        assert error <= bound, name

    return check


def relative(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖."""
    return ((found.cpu().double() - exact).norm() / exact.norm()).item()


def samples(count: int, dimension: int = 256, seed: int = 0) -> Tensor:
    """(count, dimension) float32 unit vectors around ten centers, as a trained network's features are."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(10, dimension, generator=generator)
    noise = torch.randn(count, dimension, generator=generator)
    return F.normalize(centers[torch.arange(count) % 10] + 1.5 * noise, dim=1)


@pytest.mark.parametrize("pixels", [32, 96, 224] if ON_GPU else [16])
def test_views_with_the_same_draws(pixels: int, within: Within) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (SAMPLES, pixels, pixels, 3), dtype=np.uint8))
    drawn = draw(SAMPLES, pixels, pixels, Views(rotation=15.0), 0.08, torch.Generator(DEVICE).manual_seed(0))
    found = apply(to_pixels(images.to(DEVICE)), drawn)
    on_host = {field.name: getattr(drawn, field.name).cpu() for field in dataclasses.fields(drawn)}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in on_host.items()}
    with doubled():
        expected = apply(to_pixels(images), ViewParameters(**exact))
    within("pixels, of 1", (found.cpu() - expected).abs().max().item(), 1e-3)


SEARCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "local": partial(euclidean, k=10),
    "ConAff, k1 = 10, k2 = 2": partial(conaff, k=10, settings=ConAff(10, 2)),
    "ConAff, k1 = 30, k2 = 10": partial(conaff, k=10, settings=ConAff(30, 10)),
}


@pytest.mark.parametrize("count", [SAMPLES, 4 * SAMPLES])
@pytest.mark.parametrize("name", SEARCHES)
def test_neighbors_differ_only_at_near_ties(name: str, count: int, within: Within) -> None:
    features, search = samples(count), SEARCHES[name]
    differs = (search(features.to(DEVICE)).cpu() != search(F.normalize(features.double(), dim=1))).any(1)
    within("share of samples", differs.double().mean().item(), 0.01)


def test_boundary_ratios(within: Within) -> None:
    features, centroids = samples(SAMPLES), samples(10, seed=1)
    labels = torch.cdist(features, centroids).argmin(1)
    found = boundary_ratio(features.to(DEVICE), labels.to(DEVICE), centroids.to(DEVICE))
    exact = boundary_ratio(features.double(), labels, centroids.double())
    within("ratios, of 2", (found.cpu() - exact).abs().max().item(), 1e-5)


def test_candidates_of_the_same_ratios_are_the_same_with_ties() -> None:
    ratio = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(0)).mul(50).round() / 50
    assert torch.equal(candidates(ratio.to(DEVICE), 0.8).cpu(), candidates(ratio, 0.8))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "instance concordance": lambda online, target, members, near, kept: instance_concordance(online, target),
    "group concordance": lambda online, target, members, near, kept: group_concordance(online, target, near, kept),
    "prototype scattering": lambda online, target, members, near, kept: prototype_scattering(
        online, target, members.float(), 0.5
    ),
    "group compactness": lambda online, target, members, near, kept: group_compactness(online, target, members.float()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_through_the_normalization(name: str, within: Within) -> None:
    online, target = 7 * samples(SAMPLES), 7 * samples(SAMPLES, seed=1)
    near = euclidean(samples(SAMPLES, seed=1), 10)
    others = F.one_hot(torch.arange(SAMPLES) % 10, 10), near, torch.arange(SAMPLES) % 5 > 0

    def both(online: Tensor, device: torch.device) -> list[Tensor]:
        online = online.to(device).detach().requires_grad_()
        goal = target.to(device, online.dtype)
        outputs = Outputs((online, online), (online, online), (goal, goal))
        loss = LOSSES[name](
            outputs.unit_predictions[0], outputs.unit_targets[1], *(other.to(device) for other in others)
        )
        loss.backward()
        assert online.grad is not None
        return [loss.detach(), online.grad]

    found = both(online, DEVICE)
    with doubled():
        exact = both(online.double(), CPU)
    within("loss and gradient", max(map(relative, found, exact)), 1e-5)


def test_k_means_ends_with_the_same_clusters_from_the_same_start(within: Within) -> None:
    features = samples(8 * SAMPLES)
    start = features[:10].clone()
    _, assignments, _ = kmeans_tensors(features.to(DEVICE), 10, seed=0, start=start.to(DEVICE))
    centroids, exact = start.double(), torch.empty(0)
    for _ in range(100):
        exact = (features.double() @ centroids.T).argmax(1)
        centroids = F.normalize(F.one_hot(exact, 10).double().T @ features.double(), dim=1)
    within("share of samples", (assignments.cpu() != exact).double().mean().item(), 0.001)


# A whole step


@dataclass(frozen=True)
class Tolerance:
    """Of relative errors: those of a fresh ResNet, whose features are nearly alike, are magnified by batch norm."""

    predictions: float
    gradient: float


FLOAT32, TF32, BFLOAT16 = Tolerance(1e-3, 0.02), Tolerance(0.03, 0.2), Tolerance(0.15, 0.7)


# Number format of the forward pass, tolerance (that of FLOAT32 keeps TF32 out of convolutions), views in one forward.
VARIANTS: dict[str, tuple[torch.dtype, Tolerance, bool]] = {
    "float32, no TF32": (torch.float32, FLOAT32, False),
    "float32, no TF32, both views in one forward": (torch.float32, FLOAT32, True),
    "float32": (torch.float32, TF32, False),
    "bfloat16": (torch.bfloat16, BFLOAT16, False),
    "bfloat16, both views in one forward": (torch.bfloat16, BFLOAT16, True),
}


def fresh() -> tuple[Siamese, Tensor]:
    """Networks and two views, always the same."""
    model = SPEC.build(seed=0)
    return model, torch.rand(2, STEP, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def step(model: Siamese, images: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Predictions and the gradient of all parameters: a forward and backward pass of both views."""
    model.zero_grad(set_to_none=True)
    with compute.autocast():
        outputs = model(images[0], images[1], torch.Generator())
    symmetrized(instance_concordance, outputs.unit_predictions, outputs.unit_targets).backward()
    gradients = [parameter.grad for parameter in (*model.online.parameters(), *model.predictor.parameters())]
    return torch.cat(outputs.predictions).detach(), torch.cat([gradient.flatten() for gradient in gradients])


@functools.cache
def exact_step() -> tuple[Tensor, Tensor]:
    """In float64 on the CPU."""
    model, images = fresh()
    with doubled():
        return step(model.double(), images.double(), Compute(CPU, torch.float32))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step(name: str, within: Within) -> None:
    precision, tolerance, joined = VARIANTS[name]
    model, images = fresh()
    model.to(DEVICE).to(memory_format=torch.channels_last)
    model.join_views(joined)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tolerance is not FLOAT32):
        found = step(model, images.to(DEVICE), Compute(DEVICE, precision))
    predictions, gradient = map(relative, found, exact_step())
    within("predictions", predictions, tolerance.predictions)
    within("gradient", gradient, tolerance.gradient)
