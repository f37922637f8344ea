"""The training step on a GPU: is it right, how fast, where the time goes, and what each lever is worth.

    make bench-gpu                                        # nine minutes of it; the same command goes on
    python bench/gpu.py --toy --state /tmp/toy            # everything but lightly at toy size, on a CPU, in a minute

Every cell that is finished is kept in STATE/cells.json and not run again (delete its line to repeat it); the tables
of STATE/tables.md are written anew after every cell. The loop that is timed is the one of `conr pretrain` and
`conr finetune`; parts and levers are patched into it from here. Images are random pixels: no time depends on them.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from rows import ROOT
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_step import Stopwatch, compare, conr_rate, device_name

from conr import boundary, clustering, neighbourhood, objectives, prototypes, views
from conr.files import atomic_file
from conr.networks import Outputs, Siamese, group_batch_norm
from conr.parameters import FinetuneStage, ParamsFile, PretrainStage, Views
from conr.progress import Progress
from conr.training import group, loop, pseudo_labels
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.estimate import measure
from conr.training.instance import InstanceConcordance, pretrain
from conr.training.model import build
from stages import params_file

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Row = dict[str, Any]  # what a cell found


@dataclass(frozen=True)
class Case:
    """A network and a size of images and batches.

    Attributes:
        preset: whose parameters to take.
        size: of the images, in pixels.
        batch: images per step.
        skipped, timed: steps.
        changes: of the preset.
    """

    preset: str
    size: int
    batch: int
    skipped: int = 10
    timed: int = 50
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def parameters(self, **changes: object) -> ParamsFile:
        """The preset with this batch, the case's changes and others (two underscores for the dot)."""
        params = params_file.validated(params_file.read(ROOT / f"presets/{self.preset}.yaml"))
        both = {f"{stage}.batch_size": self.batch for stage in STAGES}
        given = {name.replace("__", "."): value for name, value in changes.items()}
        return params_file.changed(params, {**both, **self.changes, **given})

    def settings(self, stage: str, **changes: object) -> PretrainStage | FinetuneStage:
        """What a stage reads of them."""
        return params_file.view_of(STAGES[stage], self.parameters(**changes))

    def description(self) -> Row:
        """Of the networks."""
        own = self.parameters().network.model_dump()
        return own | {"framework": "byol", "mean": [0.5] * 3, "std": [0.25] * 3}

    def pixels(self, count: int = 0) -> np.ndarray:
        """Random images: enough that no epoch ends before the timed steps do, or so many."""
        count = count or (self.skipped + self.timed) * self.batch
        return np.random.default_rng(0).integers(0, 256, (count, self.size, self.size, 3), dtype=np.uint8)


STAGES = {"pretrain": PretrainStage, "finetune": FinetuneStage}
CASES = {
    "ResNet-18, 32 px, batch 256": Case("cifar10", 32, 256, timed=100),
    "ResNet-18, 32 px, batch 1024": Case("cifar10", 32, 1024),
    "ResNet-34, 96 px, batch 256": Case("stl10", 96, 256),
    "ResNet-34, 224 px, batch 256": Case("imagenet-dogs", 224, 256, timed=15),
}
SMALL = {"network.width": 4, "network.hidden": 32, "network.dimension": 16, "k1": 10, "k2": 2, "k": 10}
TOYS = {"toy, 16 px, batch 16": Case("cifar10", 16, 16, 1, 2, SMALL)}


@dataclass(frozen=True)
class Size:
    """What differs between the real benchmark and its toy.

    Attributes:
        cases: to time; the first is that of the levers and the numerics.
        product: rows of the matrices whose product gives the device's rate.
        samples: of a batch in the numerics.
        images: of an epoch.
        repeats: of the levers.
        backend: of torch.compile.
    """

    cases: Mapping[str, Case]
    product: int
    samples: int
    images: int
    repeats: int
    backend: str


REAL = Size(CASES, 8192, 256, 60_000, 3, "inductor")
TOY = Size(TOYS, 256, 64, 64, 1, "eager")


def main() -> None:
    """Run the cells that are missing, as long as there is time, and print the tables."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / ".conr/gpu", help="folder of what is finished")
    parser.add_argument("--minutes", type=float, default=8.0, help="when to start no further cell; one takes up to 1.5")
    parser.add_argument("--toy", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="only these")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    arguments.state.mkdir(parents=True, exist_ok=True)
    file = arguments.state / "cells.json"
    found: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
    cells = {
        f"{table}: {name}": cell
        for table in arguments.tables
        for name, cell in TABLES[table](TOY if arguments.toy else REAL).items()
    }
    for name, cell in cells.items():
        if name in found or time.monotonic() - started > 60 * arguments.minutes:
            continue
        began = time.monotonic()
        found[name] = {"failed": "did not end"}  # what kills the process is not tried again
        save(found, arguments.state)
        try:
            found[name] = {"device": f"{device_name()}, torch {torch.__version__}", **cell()}
        except Exception as error:  # a lever may not exist everywhere; the other cells are still worth having
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        save(found, arguments.state)
        print(f"{name}: {time.monotonic() - began:.0f} s {found[name].get('failed', '')}", flush=True)
        wait()  # after an error of the device itself nothing more can be had of this process
        torch.cuda.empty_cache()
    print(tables(found))
    missing = sum(name not in found for name in cells)
    print(f"\n{missing} of {len(cells)} cells are missing" + ("; go on" if missing else ""))


def save(found: Mapping[str, Row], folder: Path) -> None:
    """Write cells and tables."""
    for name, text in (("cells.json", json.dumps(found, indent=1)), ("tables.md", tables(found))):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def tables(found: Mapping[str, Row]) -> str:
    """The cells as Markdown, a table for each kind of them."""
    lines = []
    for table in TABLES:
        rows = {name.split(": ", 1)[1]: row for name, row in found.items() if name.startswith(f"{table}: ")}
        if not rows:
            continue
        whole = [row for row in rows.values() if "failed" not in row]
        heads = [key for key in (whole[0] if whole else {"failed": ""}) if key != "device"]
        devices = "; ".join(sorted({row["device"] for row in whole}))
        lines += [f"\n## {table}\n", f"{devices}\n", f"| | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
        for name, row in rows.items():
            cells = [shown(row.get(key)) for key in heads] if "failed" not in row else [row["failed"]]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A figure for people."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "–" if value is None else str(value)


# How fast the device is


def device_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """The two rates that everything is held against."""
    return {"rates": partial(device_rates, size.product)}


def device_rates(count: int) -> Row:
    """bf16 matrix products (random data), and copies on the device, counting bytes read and written."""
    left, right = (torch.randn(count, count, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = 2 * count**3 / seconds_of(lambda: left @ right)
    source = torch.randint(0, 255, (16 * count**2,), device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds_of(lambda: target.copy_(source))
    return {
        f"bf16 product {count}³, TFLOP/s": product / 1e12,
        "copy, GB/s": copied / 1e9,
        "python": platform.python_version(),
    }


def seconds_of(call: Callable[[], object]) -> float:
    """Median seconds of ten calls after three."""
    taken = []
    for number in range(13):
        wait()
        started = time.perf_counter()
        call()
        wait()
        if number >= 3:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def wait() -> None:
    """Until the device has done what was asked of it."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


# Is it right


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
    cells |= {
        f"step, {name}": partial(step_error, case, variant, tolerance)
        for name, (variant, tolerance) in variants(size).items()
    }
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
    if hasattr(clustering, "kmeans_tensors"):
        _, assignments, _ = clustering.kmeans_tensors(features.to(DEVICE), 10, seed=0, start=start.to(DEVICE))
        found = assignments.cpu()
    else:
        found = torch.from_numpy(clustering.kmeans(features.numpy(), 10, seed=0, start=start.numpy()).assignments)
    centroids, exact = start.double(), torch.empty(0)
    for _ in range(100):
        exact = (features.double() @ centroids.T).argmax(1)
        centroids = F.normalize(F.one_hot(exact, 10).double().T @ features.double(), dim=1)
    return compared((found != exact).double().mean().item(), 0.001, "share of samples in another cluster")


def variants(size: Size) -> dict[str, tuple["Variant", float]]:
    """Number formats and levers under which a whole step is computed, and the error that each may have."""
    return {
        "float32, no TF32": (Variant("float32", None, strict=True), 1e-3),
        "float32": (Variant("float32", None), 0.02),
        "bfloat16": (Variant("bfloat16", None), 0.15),
        "float32, no TF32, both views in one forward": (Variant("float32", one_forward, strict=True), 1e-3),
        "float32, no TF32, channels first": (Variant("float32", channels_first, strict=True), 1e-3),
        "float32, no TF32, compiled": (Variant("float32", partial(compiled, size.backend), strict=True), 1e-3),
        "bfloat16, compiled": (Variant("bfloat16", partial(compiled, size.backend)), 0.15),
        "bfloat16, CUDA graphs": (Variant("bfloat16", partial(graphed, size.backend)), 0.15),
    }


@dataclass(frozen=True)
class Variant:
    """How to compute a step: number format, what to do with the model, and whether convolutions must be float32."""

    precision: str
    change: Callable[[Siamese, int], None] | None
    strict: bool = False


def step_error(case: Case, variant: Variant, tolerance: float) -> Row:
    """Gradient of a whole forward and backward pass of both views with the instance loss."""
    batch = 32
    torch.manual_seed(0)
    exact_model = build(case.description())
    images = torch.rand(2, batch, 3, case.size, case.size)
    model = build(case.description())
    model.load_state_dict(exact_model.state_dict())
    model.to(DEVICE).to(memory_format=torch.channels_last)
    if variant.change is not None:
        variant.change(model, batch)

    def gradient(model: Siamese, images: Tensor, compute: Compute) -> Tensor:
        with compute.autocast():
            outputs = model(images[0], images[1], torch.Generator())
        objectives.symmetrised(objectives.instance_concordance, outputs.predictions, outputs.targets).backward()
        grads = [parameter.grad for parameter in (*model.online.parameters(), *model.predictor.parameters())]
        return torch.cat([grad.flatten() for grad in grads])

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=not variant.strict):
        found = gradient(model, images.to(DEVICE), Compute(DEVICE, getattr(torch, variant.precision)))
    with doubled():
        host = Compute(torch.device("cpu"), torch.float32)
        exact = gradient(exact_model.double(), images.double(), host)
    return compared(relative(found, exact), tolerance, "relative error of the gradient of all parameters")


# How fast, and where the time goes


def step_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """Images/s, memory and FLOP/s of the loop itself."""
    return {
        f"{name}, {stage}": partial(step_rate, case, stage, size.product)
        for name, case in size.cases.items()
        for stage in STAGES
    }


def step_rate(case: Case, stage: str, product: int) -> Row:
    """FLOPs are those of METHOD: eight forwards of encoder and projector an image."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = loop_rate(case, stage)
    memory = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else None
    flops = 8 * forward_flops(case)
    best = device_rates(product)[f"bf16 product {product}³, TFLOP/s"] * 1e12
    return {
        "images/s": rate,
        "ms a step": 1e3 * case.batch / rate,
        "memory, GB": memory,
        "GFLOP an image": flops / 1e9,
        "TFLOP/s": flops * rate / 1e12,
        "share of the bf16 rate, %": 100 * flops * rate / best,
    }


def forward_flops(case: Case) -> int:
    """Floating-point operations of one image through encoder and projector, a multiply-add counted as two."""
    network = build(case.description()).online.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, case.size, case.size))
    return counter.get_total_flops()


def loop_rate(case: Case, stage: str, watch: Stopwatch | None = None, **changes: object) -> float:
    """Images per second of conr's own loop."""
    settings = case.settings(stage, **changes)
    watch = watch or Stopwatch(case.skipped, case.timed, case.batch)
    with mock.patch.object(pseudo_labels, "FIRST_RESTARTS", 1):  # the clustering before the first step
        return conr_rate(settings, case.parameters().network, case.pixels(), watch)


def parts_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """The share of each part of the step."""
    return {
        f"{name}, {stage}": partial(step_parts, case, stage) for name, case in size.cases.items() for stage in STAGES
    }


class Parts:
    """Milliseconds that the device spends between the beginning and the end of parts of the step."""

    def __init__(self) -> None:
        self.marks: dict[str, list[tuple[Any, Any]]] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a mark before and after every call."""

        def call(*arguments: Any, **named: Any) -> Any:
            before = self.mark()
            result = function(*arguments, **named)
            self.marks.setdefault(name, []).append((before, self.mark()))
            return result

        return call

    def mark(self) -> Any:
        """An event of the device, or the time."""
        if DEVICE.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, name: str) -> float:
        """Of all calls together."""
        if DEVICE.type != "cuda":
            return sum(1e3 * (end - start) for start, end in self.marks.get(name, []))
        return sum(start.elapsed_time(end) for start, end in self.marks.get(name, []))


class MarkedSteps(Stopwatch):
    """A stopwatch that marks every step, and forgets what was before the first timed one."""

    def __init__(self, case: Case, parts: Parts) -> None:
        super().__init__(case.skipped, case.timed, case.batch)
        self.parts, self.last = parts, None

    def step(self) -> None:
        """Count a step."""
        mark = self.parts.mark()
        if self.count + 1 == self.skipped:
            self.parts.marks.clear()
        elif self.count >= self.skipped:
            self.parts.marks.setdefault("step", []).append((self.last, mark))
        self.last = mark
        super().step()


@contextmanager
def beginning(
    change: Callable[[Siamese, int], None] = lambda model, batch: None,
    change_optimiser: Callable[[torch.optim.SGD], None] = lambda optimiser: None,
) -> Iterator[None]:
    """Change the model before conr's loop makes its optimiser, and that after."""
    make = loop._optimiser

    def optimiser(model: Siamese, recipe: loop.Recipe) -> torch.optim.SGD:
        change(model, recipe.batch_size)
        made = make(model, recipe)
        change_optimiser(made)
        return made

    with mock.patch.object(loop, "_optimiser", optimiser):
        yield


def step_parts(case: Case, stage: str) -> Row:
    """In percent of the step; what waits for the host counts where it waits."""
    parts = Parts()

    def time_optimiser(optimiser: torch.optim.SGD) -> None:
        optimiser.step = parts.timed("optimiser", optimiser.step)

    objective = group.GroupConcordance if stage == "finetune" else InstanceConcordance
    with ExitStack() as patches:
        for owner, name, part in (
            (loop, "two_views", "views"),
            (Siamese, "forward", "forward"),
            (Siamese, "project", "target forward"),
            (objective, "loss", "whole loss"),
            (group, "conaff", "neighbours"),
            (group, "boundary_ratio", "boundary"),
            (group, "candidates", "boundary"),
            (Tensor, "backward", "backward"),
            (Siamese, "update_target", "moving average"),
        ):
            patches.enter_context(mock.patch.object(owner, name, parts.timed(part, getattr(owner, name))))
        patches.enter_context(beginning(change_optimiser=time_optimiser))
        loop_rate(case, stage, MarkedSteps(case, parts))
    wait()
    found = {name: parts.milliseconds(name) for name in ("step", *PARTS, "forward", "whole loss")}
    found["online forward"] = found.pop("forward") - found["target forward"]
    found["loss"] = found.pop("whole loss") - found["neighbours"] - found["boundary"]
    whole = found.pop("step")
    shares = {f"{name}, %": 100 * found[name] / whole for name in PARTS}
    return {"ms a step": whole / case.timed, **shares, "the rest, %": 100 - sum(shares.values())}


PARTS = (
    "views",
    "online forward",
    "target forward",
    "loss",
    "neighbours",
    "boundary",
    "backward",
    "optimiser",
    "moving average",
)


# What each lever is worth


def channels_first(model: Siamese, batch: int) -> None:
    """Convolutions in PyTorch's own order of axes."""
    model.to(memory_format=torch.contiguous_format)

    def forward(network: Any, images: Tensor) -> Tensor:
        return network.projector(network.encoder(((images - network.mean) / network.std).contiguous()))

    for network in (model.online, model.target):
        network.forward = types.MethodType(forward, network)


def one_forward(model: Siamese, batch: int) -> None:
    """Both views as one batch; batch-norm statistics stay those of each view."""
    group_batch_norm(model, batch)

    def forward(first: Tensor, second: Tensor, generator: torch.Generator, noise: float = 0.0) -> Outputs:
        both = torch.cat((first, second))
        projections = model.online(both)
        halves = (projections, model.predictor(projections), model.project(both))
        return Outputs(*(tuple(tensor.chunk(2)) for tensor in halves))

    model.forward = forward


def compiled(backend: str, model: Siamese, batch: int, **options: Any) -> None:
    """The networks compiled, each on its own."""
    torch.compiler.reset()
    for module in (model.online, model.target, model.predictor):
        module.compile(backend=backend, dynamic=False, **options)


def graphed(backend: str, model: Siamese, batch: int) -> None:
    """The networks compiled into CUDA graphs."""
    compiled(backend, model, batch, **({"mode": "reduce-overhead"} if backend == "inductor" else {}))
    forward = model.forward

    def step(*arguments: Any, **named: Any) -> Outputs:
        torch.compiler.cudagraph_mark_step_begin()
        return forward(*arguments, **named)

    model.forward = step


def fused(optimiser: torch.optim.SGD) -> None:
    """SGD in one kernel for all tensors."""
    for parameters in optimiser.param_groups:
        parameters.update(foreach=False, fused=True)


@contextmanager
def tf32_products() -> Iterator[None]:
    """Matrix products of float32 in TF32, as cuDNN's convolutions are already."""
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def images_on_host() -> Iterator[None]:
    """Every batch comes from pinned memory."""
    with mock.patch.object(Compute, "place", lambda compute, images: torch.from_numpy(images)):
        yield


Lever = tuple[Callable[[], AbstractContextManager[Any]], dict[str, object]]


def levers(size: Size) -> dict[str, Lever]:
    """What to switch, and the parameters that do. All else is as conr has it."""
    return {
        "nothing (the noise)": (nullcontext, {}),
        "channels first": (lambda: beginning(channels_first), {}),
        "float32 (TF32 in convolutions)": (nullcontext, {"precision": "float32"}),
        "compiled networks": (lambda: beginning(partial(compiled, size.backend)), {}),
        "compiled networks, CUDA graphs": (lambda: beginning(partial(graphed, size.backend)), {}),
        "fused SGD": (lambda: beginning(change_optimiser=fused), {}),
        "both views in one forward": (lambda: beginning(one_forward), {}),
        "cudnn.benchmark": (lambda: torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True), {}),
        "TF32 products": (tf32_products, {}),
        "images on the host": (images_on_host, {}),
    }


def lever_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """Each lever of the first stage alone, in the first case, and in the first with a ResNet-34."""
    cases = {name: case for name, case in size.cases.items() if name in (next(iter(size.cases)), next(iter(CASES)))}
    cases |= {name: case for name, case in size.cases.items() if case.preset == "stl10"}
    return {
        f"{case_name}, {name}": partial(lever_gain, case, lever, size.repeats)
        for case_name, case in cases.items()
        for name, lever in levers(size).items()
    }


def lever_gain(case: Case, lever: Lever, repeats: int) -> Row:
    """As conr is, and with the lever, in turn."""
    context, changes = lever
    plain, switched = [], []
    for _ in range(repeats):
        plain.append(loop_rate(case, "pretrain"))
        with context():
            switched.append(loop_rate(case, "pretrain", **changes))
    return {
        "conr, images/s": statistics.median(plain),
        "with the lever": statistics.median(switched),
        "ratio": statistics.median(switched) / statistics.median(plain),
        "conr, lowest to highest": f"{min(plain):,.0f}-{max(plain):,.0f}",
    }


# What an epoch takes beside its steps


def epoch_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """Whole epochs of the first case."""
    case = next(iter(size.cases.values()))
    return {stage: partial(epoch_costs, case, stage, size.images) for stage in STAGES}


def epoch_costs(case: Case, stage: str, count: int) -> Row:
    """As `conr estimate` measures them, with random labels."""
    labels = np.random.default_rng(1).integers(0, 10, count)
    model = build(case.description())

    def train(
        images: np.ndarray, labels: np.ndarray | None, epochs: int, checkpoint: Checkpoint, progress: Progress
    ) -> object:
        settings = case.settings(stage, **{f"{stage}__epochs": epochs, "optimiser__base_learning_rate": 1e-9})
        if isinstance(settings, PretrainStage):
            return pretrain(model, images, labels, settings, checkpoint, progress)
        return group.finetune(model, images, labels, settings, 0, checkpoint, progress)

    @contextmanager
    def progress(description: str, total: int, done: int = 0) -> Iterator[object]:
        yield lambda amount, note="": None

    with tempfile.TemporaryDirectory() as folder:
        found = measure(train, case.pixels(count), labels, case.batch, 10, DEVICE, Path(folder), progress)
    return {
        "images": found.images,
        "s of steps": found.step * (found.images // case.batch),
        "s before the first epoch": found.start,
        "s of features, k-means and scores": found.end,
        "s of saving the checkpoint": found.save,
        "checkpoint, MB": found.checkpoint / 1e6,
    }


# The ordinary loop


def ordinary_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """conr's loop against lightly's (bench/training_step.py)."""
    return {f"ResNet-18, 32 px, batch {batch}": partial(ordinary, batch, size.repeats) for batch in (256,)}


def ordinary(batch: int, repeats: int) -> Row:
    """Images per second of both, each in processes of its own."""
    lightly, conr = compare("ResNet-18", batch, repeats)
    return {"lightly, images/s": lightly, "conr, images/s": conr, "ratio": conr / lightly}


TABLES: dict[str, Callable[[Size], dict[str, Callable[[], Row]]]] = {
    "device": device_cells,
    "numerics": numerics_cells,
    "step": step_cells,
    "parts": parts_cells,
    "ordinary": ordinary_cells,
    "epochs": epoch_cells,
    "levers": lever_cells,
}

if __name__ == "__main__":
    main()
