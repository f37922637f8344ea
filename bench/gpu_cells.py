"""What gpu.py computes in other processes: measurements, trainings and scores."""

import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from common import ROOT, TRAININGS
from gpu import EAGER, METHODS, PRESET, TOY, Run
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from training_step import DEVICE, ON_GPU, Case, EnoughStepsError, Stopwatch, random_pixels

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
from conr.training.log import Row
from conr.training.pretraining import pretrain

NUMERICS = ("not compiled and not graphs and not 224", "boundary")  # without what takes long; at toy size
# Weights are compared after three short epochs, in which the learning rate rises, all weights move alike, and ever more
# samples become candidates.
EPOCHS, STEPS = 3, 10
RISING = {"optimizer.warmup_epochs": EPOCHS, "optimizer.schedule_epochs": 2 * EPOCHS, "fr": 0.2}
RISING |= {"pretrain.epochs": EPOCHS, "finetune.epochs": EPOCHS, "finetune.lr_scale": 1.0}
PROFILED, SHOWN = 20, 60  # steps; kernels
PART, ALL_PARTS = 16e6, 64e6  # bytes of a file of features; of all of them
ENDING = 10  # seconds in which a training saves its state and ends


def case(run: Run) -> Case:
    """What is measured."""
    return Case(PRESET, 16, 40, 240, 2, 3, TOY) if run.toy else Case(PRESET, 32, 256, 60_000, 20, 100)


def device(run: Run) -> dict[str, Any]:
    """What computes, how fast it multiplies bf16 matrices of random data, and the work for an image."""
    size = 256 if run.toy else 8192
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    with FlopCounterMode(display=False) as counter:
        fresh_model(case(run).parameters()).eval().project(torch.zeros(1, 3, case(run).size, case(run).size))
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
    options = ["-p", "no:cacheprovider", "--noconftest", "-c", str(ROOT / "pyproject.toml"), "-k", NUMERICS[run.toy]]
    pytest.main([*options, str(ROOT / "tests/numerics")], [verdicts])
    return verdicts.found


def speed(run: Run, variant: str) -> dict[str, dict[str, Any]]:
    """Of both stages: images/s, FLOP/s as a share of those of bf16 products, and how differently weights come out.

    Differences are relative to the change of the weights; that of the eager step is between two of its runs.
    """
    facts, found = run.found["device"], {}
    for stage in TRAININGS:
        file, row = run.state / f"eager-{stage}.npy", {}
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            if variant == EAGER:
                save_array(file, weights_after(run, stage, variant))
                row["other views"] = difference(file, weights_after(run, stage, variant, seed=1))
            row["difference"] = difference(file, weights_after(run, stage, variant))
            row["images/s"] = images_per_second(case(run), stage, variant)
        row["share"] = row["images/s"] * facts["FLOP per image"] / facts["bf16 product, FLOP/s"]
        found[stage] = row | {"notes": sorted({str(warning.message) for warning in noted})}
    return found


def difference(file: Path, found: NDArray[np.float32]) -> float:
    """Of a change of weights from the one in a file."""
    expected = np.load(file)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def weights_after(run: Run, stage: str, variant: str, seed: int = 0) -> NDArray[np.float32]:
    """How all weights change in thirty steps."""
    parameters = case(run).parameters().changed({**RISING, "seed": seed})
    model, pixels = fresh_model(parameters), random_pixels(STEPS * case(run).batch, case(run).size)
    before = flat(model)
    with TemporaryDirectory() as folder:
        train_stage(stage, model, pixels, None, parameters, Checkpoint(Path(folder)), SILENT, variant)
    return flat(model) - before


def images_per_second(case: Case, stage: str, variant: str, watch: Stopwatch | None = None) -> float:
    """Of fresh networks on random pixels."""
    parameters, pixels = case.parameters(), random_pixels(case.images, case.size)
    model, watch = fresh_model(parameters), watch or Stopwatch(case)
    try:
        with TemporaryDirectory() as folder:
            train_stage(stage, model, pixels, None, parameters, Checkpoint(Path(folder)), watch, variant)
    except EnoughStepsError as enough:
        return float(enough.args[0])
    raise AssertionError("too few steps")


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
    labels: NDArray[np.int64] | None,
    parameters: Parameters,
    checkpoint: Checkpoint,
    observer: Observer,
    variant: str,
    first_epoch: int = 0,
) -> list[Row]:
    """conr's training, with its steps executed as the variant says."""
    if stage == "pretrain":
        return pretrain(model, images, labels, parameters, checkpoint, observer)
    return finetune(model, images, labels, parameters, first_epoch, checkpoint, observer)


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
    images_per_second(profiled, "pretrain", variant, watch)
    watch.profile.stop()
    unit = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    events = sorted(watch.profile.key_averages(), key=lambda event: getattr(event, unit), reverse=True)
    rows = [(event.key[:90], event.count / steps, getattr(event, unit) / steps) for event in events]
    return {
        "kernels": sum(row[1] for row in rows),
        "microseconds": sum(row[2] for row in rows),
        "slowest": rows[:SHOWN],
    }


class TimedCheckpoint(Checkpoint):
    """Also due after the last epoch that fits into the time."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(run.state / "checkpoints" / name)
        self.run, self.asked, self.is_last = run, time.monotonic(), False

    @property
    def due(self) -> bool:
        epoch, self.asked = time.monotonic() - self.asked, time.monotonic()
        self.is_last = self.run.left < ENDING + 2 * epoch
        return self.is_last or super().due


class Curve(Observer):
    """Keeps the log after every epoch; raises `OutOfTimeError` where no further one fits."""

    def __init__(self, run: Run, name: str, checkpoint: TimedCheckpoint, epochs: int) -> None:
        self.run, self.name, self.checkpoint, self.epochs = run, name, checkpoint, epochs
        self.rows = run.found.get(name, [])[: checkpoint.epochs]

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        self.run.keep(self.name, self.rows)
        if self.checkpoint.is_last and len(self.rows) < self.epochs:
            raise OutOfTimeError


class OutOfTimeError(Exception):
    """No further epoch fits into the time."""


def train(run: Run, name: str) -> bool:
    """Whether a training, and the pretraining that it starts from, end in time; then its features are in a file."""
    file = run.state / f"features-{name}.npy"
    if file.exists():
        return True
    plan, store = run.found["plan"], open_store(Workspace.at(run.state).store)
    parameters = scheduled(run, name)
    model, epochs = model_spec(parameters, store.manifest).build(parameters.seed), 0
    images, labels = store.training_images, store.training_labels
    for part in dict.fromkeys(("pretrain", name)):  # a finished pretraining resumes at its end
        stage = "pretrain" if part == "pretrain" else "finetune"
        checkpoint = TimedCheckpoint(run, part)
        curve, variant = Curve(run, part, checkpoint, plan[stage]), plan["variant"]
        try:
            epochs += len(train_stage(stage, model, images, labels, parameters, checkpoint, curve, variant, epochs))
        except OutOfTimeError:
            return False
    compute = Compute.choose(parameters.device, "float32")
    save_array(file, clean_features(model.target, compute.load_images(store.images), compute).cpu().numpy())
    return True


def scheduled(run: Run, name: str) -> Parameters:
    """The preset with all that is counted in epochs in proportion."""
    first, second = (run.found["plan"][stage] for stage in TRAININGS)
    total = first + second
    changes = {"pretrain.epochs": first, "finetune.epochs": second, "optimizer.schedule_epochs": total}
    changes |= {"optimizer.warmup_epochs": max(1, round(total / 20)), "optimizer.target_momentum": 1 - 4 / total}
    if name == "InC":
        changes |= {"neighborhood.neighbors": "none", "boundary.filter": "none"}
    return case(run).parameters().changed(changes)


def score(run: Run, name: str) -> None:
    """Keep the features of a training in half precision; cluster them by k-means and by the graph."""
    found = run.found.get(f"scores, {name}", {})
    if set(METHODS) <= set(found):
        return
    features, store = np.load(run.state / f"features-{name}.npy"), open_store(Workspace.at(run.state).store)
    keep_features(run.out, name, features)
    parameters, first = case(run).parameters(), None
    for method in METHODS:
        started = time.monotonic()
        result = evaluate_store(features, store, parameters, parameters.seed, method, start=first)
        first = first or result
        found[method] = {**result.scores, "seconds": round(time.monotonic() - started, 1)}
        run.keep(f"scores, {name}", found)


def keep_features(folder: Path, name: str, features: NDArray[np.float32]) -> None:
    """In parts of at most 16 MB; where all features would take more than 64 MB, the oldest are deleted."""
    half = features.astype(np.float16)
    kept = sorted(folder.glob("features-*.npy"), key=lambda file: file.stat().st_mtime_ns)
    while kept and sum(file.stat().st_size for file in kept) + half.nbytes > ALL_PARTS:
        kept.pop(0).unlink()
    for number, rows in enumerate(np.array_split(half, math.ceil(half.nbytes / PART))):
        save_array(folder / f"features-{name}-{number}.npy", rows)
