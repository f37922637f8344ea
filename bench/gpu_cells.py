"""What gpu.py computes in other processes: measurements, trainings and scores."""

import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import ROOT, TRAININGS
from gpu import EAGER, PRESET, TOY, TRAINED, VARIANTS, Run
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from training_step import DEVICE, ON_GPU, Case, EnoughStepsError, Stopwatch

from conr import ModelSpec, Parameters, Workspace
from conr.data.store import open_store
from conr.evaluation.evaluate import evaluate_store
from conr.files import save_array
from conr.models.siamese import Siamese
from conr.observer import SILENT, Observer
from conr.pipeline.pretrain import model_spec
from conr.refinement.objective import finetune
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute, clean_features, machine
from conr.training.execution import Execution
from conr.training.log import Row
from conr.training.pretraining import pretrain

NUMERICS = ("not 224", "boundary")  # tests, without those that take long; at toy size
EPOCHS, STEPS = 3, (10, 1)  # short epochs after which variants are compared; steps of each, and at toy size
# The learning rate rises, all weights move alike, ever more samples become candidates, and rounding cannot choose other
# neighbors, as all of a batch are.
RISING = {"pretrain.epochs": EPOCHS, "finetune.epochs": EPOCHS, "finetune.lr_scale": 1.0, "fr": 0.2}
RISING |= {"optimizer.warmup_epochs": EPOCHS, "optimizer.schedule_epochs": 2 * EPOCHS}
CONSTANT = {"optimizer.base_learning_rate": 0.006, "optimizer.warmup_epochs": 0, "optimizer.schedule_epochs": 10**6}
START = {"pretrain.epochs": 2 * EPOCHS, "optimizer.schedule_epochs": 4 * EPOCHS, "optimizer.base_learning_rate": 0.1}
PROFILED, SHOWN = 20, 60  # steps; kernels
PART, ALL_PARTS = 16e6, 64e6  # bytes of a file of features; of all of them


def case(run: Run) -> Case:
    """What is measured."""
    return Case(PRESET, 16, 40, 120, 1, 2, TOY) if run.toy else Case(PRESET, 32, 256, 60_000, 20, 100)


@cache
def own_parameters(run: Run) -> Parameters:
    """The preset, or its toy."""
    return case(run).parameters()


def device(run: Run) -> dict[str, Any]:
    """What computes, how fast it multiplies bf16 matrices of random data, and the work for an image."""
    size = 256 if run.toy else 8192
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    with FlopCounterMode(display=False) as counter:
        fresh_model(own_parameters(run)).eval().project(torch.zeros(1, 3, case(run).size, case(run).size))
    return {
        "device": machine(DEVICE),
        "versions": {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version() if ON_GPU else None},
        "cores": os.cpu_count(),
        "FLOP per image": 8 * counter.get_total_flops(),  # two views, two networks, and back through one: twice as much
        "bf16 product, FLOP/s": 2 * size**3 / timer.blocked_autorange().median,
    }


class Verdicts:
    """A plugin of pytest that keeps the outcome of every test, and the errors that it has recorded."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.found: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        if report.when == "call" or report.failed:
            name = report.nodeid.split("::", 1)[1]
            self.found[name] = {"outcome": report.outcome, **dict(report.user_properties)}
            self.run.keep("numerics", self.found)


def numerics(run: Run) -> dict[str, Any]:
    """The tests that compare every kernel path with float64."""
    verdicts = Verdicts(run)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else a machine has
    options = ["-p", "no:cacheprovider", "--noconftest", "-c", str(ROOT / "pyproject.toml"), "-k", NUMERICS[run.toy]]
    pytest.main([*options, str(ROOT / "tests/numerics")], [verdicts])
    return verdicts.found


def speed(run: Run, variant: str) -> dict[str, dict[str, Any]]:
    """Of both stages: images/s, FLOP/s as a share of those of bf16 products, and what differs from the eager step."""
    facts, found = run.found["device"], {}
    for stage in TRAININGS:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            row = compared(run, stage, variant)
            row["images/s"] = images_per_second(run, stage, variant)
        row["share"] = row["images/s"] * facts["FLOP per image"] / facts["bf16 product, FLOP/s"]
        found[stage] = row | {"notes": sorted({str(warning.message) for warning in noted})}
    return found


def compared(run: Run, stage: str, variant: str) -> dict[str, Any]:
    """How far weights and losses are from those of the eager step; of that itself those of another run, and of others.

    Distances of weights are relative to how far the eager step moves them.
    """
    file = run.state / f"eager-{stage}.npz"
    if variant == EAGER:
        np.savez(file, *some_steps(run, stage, EAGER))
    with np.load(file) as eager:
        weights, losses = eager.values()

    def distances(**changes: Any) -> tuple[float, float]:
        others = some_steps(run, stage, variant, changes)
        apart = np.linalg.norm(others[0] - weights) / np.linalg.norm(weights)
        return float(apart), float(abs(others[1] - losses).max())

    row = dict(zip(("weights", "losses"), distances(), strict=True))
    if variant == EAGER:
        row["weights, constant rate"] = distances(**CONSTANT)[0]
        row["losses, other views"] = distances(seed=1)[1]
    return row


def some_steps(
    run: Run, stage: str, variant: str, changes: Mapping[str, Any] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """How thirty steps change all weights, and each epoch's loss and share of candidates."""
    parameters = own_parameters(run).changed({**RISING, "k": case(run).batch, **(changes or {})})
    model, start = fresh_model(parameters), run.state / "start.pt"
    images, count = training_images(run), STEPS[run.toy] * case(run).batch
    images = images[:: max(1, len(images) // count)][:count]
    if stage == "finetune":
        if not start.exists():  # features of fresh networks are nearly alike, and their clusters depend on rounding
            train_stage("pretrain", model, images, parameters.changed(START), EAGER)
            torch.save(model.state_dict(), start)
        model.load_state_dict(torch.load(start, map_location="cpu"))
    before = flat(model)
    rows = train_stage(stage, model, images, parameters, variant)
    return flat(model) - before, np.array([[row["loss"], row.get("candidate_fraction", 0.0)] for row in rows])


def images_per_second(run: Run, stage: str, variant: str, watch: Stopwatch | None = None) -> float:
    """Of fresh networks."""
    parameters = own_parameters(run)
    try:
        observer = watch or Stopwatch(case(run))
        train_stage(stage, fresh_model(parameters), training_images(run), parameters, variant, observer)
    except EnoughStepsError as enough:
        return float(enough.args[0])
    raise AssertionError("too few steps")


def training_images(run: Run) -> NDArray[np.uint8]:
    """Those of the store."""
    return open_store(Workspace.at(run.state).store).training_images


def fresh_model(parameters: Parameters) -> Siamese:
    """Always the same networks."""
    return ModelSpec(**parameters.network.layers).build(seed=0)


def flat(model: Siamese) -> NDArray[np.float32]:
    """All weights of all networks."""
    return torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()]).numpy()


def train_stage(
    stage: str,
    model: Siamese,
    images: NDArray[np.uint8],
    parameters: Parameters,
    variant: str,
    observer: Observer = SILENT,
    checkpoint: Checkpoint | None = None,
    labels: NDArray[np.int64] | None = None,
    first_epoch: int = 0,
) -> list[Row]:
    """conr's training, with its steps executed as the variant says."""
    shared = {"observer": observer, "execution": execution(variant), "checkpoint": checkpoint or NoCheckpoint(Path())}
    if stage == "pretrain":
        return pretrain(model, images, labels, parameters, **shared)
    return finetune(model, images, labels, parameters, first_epoch, **shared)


class NoCheckpoint(Checkpoint):
    """Keeps nothing."""

    def load(self) -> None:
        """There is nothing."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


def execution(variant: str) -> Execution:
    """Of a variant; a CPU records nothing, and takes too long to compile."""
    fields = Execution(**VARIANTS[variant])
    return fields if ON_GPU else replace(fields, graph=False, compiled=False)


class Profiler(Stopwatch):
    """Profiles the timed steps."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.profile = profile(activities=[ProfilerActivity.CUDA if ON_GPU else ProfilerActivity.CPU])

    def step_done(self, amount: int = 1, note: str = "") -> None:
        if self.count + 1 == self.case.skipped:
            self.profile.start()
        super().step_done()


def kernels(run: Run, variant: str) -> dict[str, Any]:
    """Of a step of pretraining: the kernels that take the longest, how often each runs, and its microseconds."""
    profiled = replace(case(run), timed=min(case(run).timed, PROFILED))
    watch, steps = Profiler(profiled), profiled.timed
    images_per_second(run, "pretrain", variant, watch)
    watch.profile.stop()
    unit = attrgetter("self_device_time_total" if ON_GPU else "self_cpu_time_total")
    events = sorted(watch.profile.key_averages(), key=unit, reverse=True)
    rows = [(event.key[:90], event.count / steps, unit(event) / steps) for event in events if unit(event)]
    _, counts, microseconds = zip(*rows, strict=True)
    return {"kernels": sum(counts), "microseconds": sum(microseconds), "slowest": rows[:SHOWN]}


class Curve(Observer):
    """Keeps the log of a training after every epoch."""

    def __init__(self, run: Run, name: str, done: int) -> None:
        self.run, self.name = run, name
        self.rows = run.found.get(name, [])[:done]

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.run.keep(self.name, self.rows)


def train(run: Run, name: str) -> None:
    """Train, or resume; then the features of all images are in a file. What starts from the pretraining loads it."""
    file = run.state / f"features-{name}.npy"
    if file.exists():
        return
    store, parameters = open_store(Workspace.at(run.state).store), scheduled(run, name)
    variant, epochs = run.found["plan"]["variant"], 0
    model = model_spec(parameters, store.manifest).build(parameters.seed)
    for part in dict.fromkeys(("pretrain", name)):
        stage, checkpoint = "pretrain" if part == "pretrain" else "finetune", Checkpoint(run.state / f"training/{part}")
        kept = {"checkpoint": checkpoint, "observer": Curve(run, part, checkpoint.epochs), "first_epoch": epochs}
        kept |= {"labels": store.training_labels}
        epochs += len(train_stage(stage, model, store.training_images, parameters, variant, **kept))
    compute = Compute.choose(parameters.device, "float32")
    save_array(file, clean_features(model.target, compute.load_images(store.images), compute).cpu().numpy())


def scheduled(run: Run, name: str) -> Parameters:
    """The preset with all that is counted in epochs in proportion."""
    first, second = (run.found["plan"][stage] for stage in TRAININGS)
    total = first + second
    changes = {"pretrain.epochs": first, "finetune.epochs": second, "optimizer.schedule_epochs": total}
    changes |= {"optimizer.warmup_epochs": max(1, round(total / 20)), "optimizer.target_momentum": 1 - 4 / total}
    if name == "InC":
        changes |= {"neighborhood.neighbors": "none", "boundary.filter": "none"}
    return own_parameters(run).changed(changes)


def score(run: Run, name: str) -> None:
    """Keep the features of a training in half precision; cluster them by k-means and by the graph."""
    found = run.found.get(f"scores, {name}", {})
    if "graph" in found:
        return
    features, store = np.load(run.state / f"features-{name}.npy"), open_store(Workspace.at(run.state).store)
    keep_features(run.out, name, features)
    parameters, first = own_parameters(run), None
    for method in ("kmeans", "graph"):
        started = time.monotonic()
        result = evaluate_store(features, store, parameters, parameters.seed, method, start=first)
        first = first or result
        found[method] = {**result.scores, "seconds": round(time.monotonic() - started, 1)}
        run.keep(f"scores, {name}", found)


def keep_features(folder: Path, name: str, features: NDArray[np.float32]) -> None:
    """In parts of at most 16 MB; where all features would take more than 64 MB, those of the first trainings go."""
    half = features.astype(np.float16)
    for other in TRAINED:
        if half.nbytes + sum(file.stat().st_size for file in folder.glob("features-*.npy")) > ALL_PARTS:
            for file in folder.glob(f"features-{other}-*.npy"):
                file.unlink()
    for number, rows in enumerate(np.array_split(half, math.ceil(half.nbytes / PART))):
        save_array(folder / f"features-{name}-{number}.npy", rows)
