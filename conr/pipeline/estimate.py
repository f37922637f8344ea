"""The cost of training on this device: both stages, run for two short epochs in a temporary workspace."""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal
from torch.utils.flop_counter import FlopCounterMode

from conr.data.store import Store, load_manifest, open_store, write_subset
from conr.errors import UserError
from conr.observer import SILENT, Observer
from conr.parameters import Parameters
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.finetune import finetune
from conr.pipeline.pretrain import model_spec, pretrain, save_pretrained, starting_weights
from conr.pipeline.report import aligned
from conr.pipeline.workspace import Workspace
from conr.processes import Workers
from conr.training.checkpoints import SAVING
from conr.training.compute import Compute
from conr.training.pretraining import examined
from conr.training.schedules import view_scale

FIRST_STEPS = 2  # of an epoch of the first trial, which shows how many fit into the second
BUDGET = 5.0  # seconds that the steps of an epoch of the second should take
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
# The time of a step does not depend on the learning rate: with next to none no trial diverges, and what begins after
# the warm-up (noise, prototype scattering) is timed from the first epoch on.
CHANGES = {
    "optimizer.base_learning_rate": 1e-9,
    "optimizer.warmup_epochs": 0,
    "training.processes": 1,
    "finetune.patience": 0,
    "seeds": [],
}
NOTES = (
    "Timed with one process, whatever training.processes says.",
    "All epochs count, though finetune.patience may end finetune before the last.",
    "Timed with fresh networks: on the features of trained ones k-means may take more iterations, or fewer.",
    "extract and evaluate come on top: extract embeds all images once with pretrain's weights and once per seed.",
)


@dataclass(frozen=True)
class Cost:
    """What a stage will take. All that an epoch does grows with the images, but for saving the checkpoint.

    Attributes:
        images, batch_size, epochs: of the training.
        examined: after how many of the epochs the features are clustered and scored.
        runs: how often it is run, once per seed.
        flops: floating-point operations of a step, a multiply-add counted as two; the mean if the views' size changes.
        step, save: seconds of a step, likewise, and of saving a checkpoint.
        start, end: seconds of clustering all images before the first epoch, with many initializations, and of
            clustering and scoring them after one.
        disk: bytes of weights and checkpoint.
        memory, device_memory: bytes at the peak; the latter None without a GPU.
        start_up: seconds before the first run.
    """

    images: int
    batch_size: int
    epochs: int
    examined: int
    runs: int
    flops: int
    step: float
    save: float
    start: float
    end: float
    disk: int
    memory: int
    device_memory: int | None = None
    start_up: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of an epoch; the last partial batch is dropped."""
        return self.images // self.batch_size

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch, its share of the examinations and of the savings included."""
        computing = self.steps * self.step + self.end * self.examined / self.epochs
        return computing + min(self.save, SAVING * computing)

    @property
    def seconds(self) -> float:
        """Seconds of all runs."""
        return self.start_up + self.runs * (self.start + self.epochs * self.epoch_seconds)


def estimate(workspace: Workspace, parameters: Parameters, observer: Observer = SILENT) -> dict[str, Cost]:
    """Try pretrain and finetune on the packed store, each in a process of its own, and delete what they write.

    finetune without epochs (finetune.epochs: 0) is left out.

    Raises:
        UserError: there is no store, parameters do not fit the images, or memory is too small.
    """
    manifest = open_store(workspace.store).manifest
    check_data(parameters, manifest)
    if parameters.network.is_frozen:
        raise UserError(
            f"network.backbone = {parameters.network.backbone} stays as it is: there is no training to time"
        )
    stages = ["pretrain", "finetune"] if parameters.finetune.epochs else ["pretrain"]
    most = min(parameters.candidates[-1], manifest.train_count)
    parameters = fit_batches(parameters.changed({"clusters": most}), manifest)
    workspace.scratch.mkdir(parents=True, exist_ok=True)
    costs = {}
    with TemporaryDirectory(prefix="estimate-", dir=workspace.scratch) as folder:
        for stage in stages:
            try:
                with Workers(1, kill_on_error=True) as pool:
                    trial = pool.submit(try_out, stage, workspace, parameters, Path(folder), observer, time.time())
                    costs[stage] = trial.result()
            except (BrokenProcessPool, torch.OutOfMemoryError) as error:
                message = f"{stage} does not fit into memory; lower {stage}.batch_size or network.width"
                raise UserError(message) from error
    return costs


def try_out(
    stage: str, workspace: Workspace, parameters: Parameters, folder: Path, observer: Observer, asked: float
) -> Cost:
    """Time a stage with views of each size that it will have.

    Args:
        stage: pretrain or finetune.
        workspace: whose store is trained on.
        parameters: all of them.
        folder: where the trials have their workspaces.
        observer: notified of every step.
        asked: the time at which the process was asked for; start-up and memory are those of the stage's command.
    """
    start_up, store = time.time() - asked, open_store(workspace.store)
    first = parameters.pretrain.epochs if stage == "finetune" else 0
    epochs = range(first, first + getattr(parameters, stage).epochs)
    resolution, length = parameters.views.resolution, parameters.optimizer.schedule_epochs
    counts = Counter(view_scale(epoch, resolution, length) for epoch in epochs)
    costs = {}
    for scale in counts:
        own = parameters.changed({"views.resolution": [[0, scale]]})
        costs[scale] = _timed(stage, own, store, folder, f"{stage} {scale:g}", observer)
    return replace(
        costs[max(costs)],
        flops=round(sum(costs[scale].flops * count for scale, count in counts.items()) / counts.total()),
        step=sum(costs[scale].step * count for scale, count in counts.items()) / counts.total(),
        memory=max(cost.memory for cost in costs.values()),
        start_up=start_up,
    )


def _timed(stage: str, parameters: Parameters, store: Store, folder: Path, name: str, observer: Observer) -> Cost:
    """Time steps: first few of them, then as many as the budget allows, at most whole epochs."""
    batch_size = getattr(parameters, stage).batch_size
    needed = math.ceil((parameters.pretrain.prototypes if stage == "pretrain" else parameters.number) / batch_size)
    first = last = _trial(stage, parameters, store, max(FIRST_STEPS, needed), folder / f"{name} 1", observer)
    steps = min(max(int(BUDGET / first.step), needed), first.images // batch_size)
    if steps > FIRST_STEPS:
        last = _trial(stage, parameters, store, steps, folder / f"{name} 2", observer)
    return replace(last, flops=first.flops)


class _Stopwatch(Observer):
    """Times two epochs, and counts the operations of the second step.

    It waits for the device only where the steps of an epoch end: else a GPU would not run ahead as it does in training.
    """

    def __init__(self, steps: int, device: torch.device, shown: Observer) -> None:
        self.steps, self.device, self.shown = steps, device, shown
        self.count, self.begun, self.first, self.seconds = 0, 0.0, 0.0, 0.0
        self.counter, self.counting = FlopCounterMode(display=False), ExitStack()
        self.stepped: list[float] = []
        self.ended: list[float] = []

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        with self.shown.task(f"time {name}", total, done):
            self.begun = time.perf_counter()
            yield

    def step_done(self, amount: int = 1, note: str = "") -> None:
        self.shown.step_done(amount, note)
        self.count += 1
        if self.count == 1:
            self.first = time.perf_counter() - self.begun
            self.counting.enter_context(self.counter)
        self.counting.close() if self.count == 2 else None
        if self.count % self.steps == 0:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.stepped.append(time.perf_counter())

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.ended.append(time.perf_counter())
        self.seconds = row["seconds"]


def _trial(stage: str, parameters: Parameters, store: Store, steps: int, folder: Path, observer: Observer) -> Cost:
    """Two epochs of so many steps; the second of them counts."""
    settings, workspace = getattr(parameters, stage), Workspace.at(folder)
    count, tried = store.manifest.train_count, steps * settings.batch_size
    # At equal distances in the store, so that all classes are there; repeated if there are not enough.
    write_subset(store, np.arange(tried) * count // tried, workspace.store)
    manifest = load_manifest(workspace.store)
    queue = min(parameters.framework.queue, tried - 1)
    own = parameters.changed({**CHANGES, f"{stage}.epochs": 2, "framework.queue": queue})
    compute = Compute.choose(own.device, own.precision)
    spec = model_spec(own, manifest, starting_weights(own))
    watch, model = _Stopwatch(steps, compute.device, observer), spec.build(own.seed)
    if stage == "pretrain":
        pretrain(workspace, own, watch)
    else:
        save_pretrained(workspace, model, spec, own, manifest, [], own.pretrain.epochs)
        finetune(workspace, own, watch)
    stepping = watch.stepped[1] - watch.ended[0]
    pixels, features = store.images[0].nbytes, 2 * 4 * own.network.dimension  # float32, in parts and in one piece
    untried, on_gpu = max(count - tried, 0), compute.device.type == "cuda"
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    momentum = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    epochs = range(settings.epochs)
    return Cost(
        images=count,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        examined=sum(stage == "finetune" or examined(epoch, settings.epochs) for epoch in epochs),
        runs=1 if stage == "pretrain" else len(parameters.all_seeds),
        flops=watch.counter.get_total_flops(),
        step=stepping / steps,
        save=max(watch.ended[1] - watch.ended[0] - watch.seconds, 0.0),
        start=max(watch.first - stepping / steps, 0.0) * count / tried,
        end=max(watch.seconds - stepping, 0.0) * count / tried,
        disk=2 * weights + momentum,
        memory=RSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + untried * (pixels + features),
        device_memory=torch.cuda.max_memory_reserved() + untried * pixels if on_gpu else None,
    )


def report(costs: Mapping[str, Cost], device: str, free: int, memory: int) -> list[str]:
    """Lines of text: one row per stage, the total, the disk, and warnings.

    Args:
        costs: by the name of the stage.
        device: where they were measured.
        free: bytes free on the disk.
        memory: bytes of memory that the machine has.
    """
    rows = [["", "images", "steps/epoch", "GFLOP/step", "GFLOP/s", "s/epoch", "epochs", "time", "memory", "GPU memory"]]
    for stage, cost in costs.items():
        gpu = "–" if cost.device_memory is None else decimal(cost.device_memory)
        numbers = [cost.flops / 1e9, cost.flops / cost.step / 1e9, cost.epoch_seconds]
        cells = [f"{cost.images:,}", f"{cost.steps:,}", *(f"{number:,.3g}" for number in numbers)]
        taken = str(timedelta(seconds=round(cost.seconds)))
        rows.append([stage, *cells, f"{cost.runs} × {cost.epochs}", taken, decimal(cost.memory), gpu])
    last, total = [*costs.values()][-1], timedelta(seconds=round(sum(cost.seconds for cost in costs.values())))
    # finetune keeps a checkpoint per seed until it ends, and writes a new one beside the old.
    needed = (last.runs + 1) * last.disk
    trainings = f"one pretraining and {last.runs} of finetune" if "finetune" in costs else "one pretraining"
    lines = [
        *aligned(rows),
        "",
        f"total    {total} (h:min:s) for {trainings}, on {device}",
        f"disk     {decimal(needed)} for weights and checkpoints; {decimal(free)} are free",
        *NOTES,
    ]
    if needed > free:
        lines.append(f"Warning: training needs {decimal(needed)} of disk, {decimal(free)} are free; free some first")
    lines += [
        f"Warning: {stage} needs {decimal(cost.memory)} of memory, this machine has {decimal(memory)}; "
        f"lower {stage}.batch_size or network.width"
        for stage, cost in costs.items()
        if cost.memory > memory
    ]
    return lines
