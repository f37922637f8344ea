"""estimate: the store and the parameters → what training will cost here. No artifact: it leaves nothing behind."""

import itertools
import os
import resource
import shutil
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from conr.data.store import open_store
from conr.errors import UserError
from conr.networks import Siamese
from conr.parameters import FinetuneStage, ParamsFile, PretrainStage
from conr.processes import Workers
from conr.progress import Progress
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute
from conr.training.estimate import Cost, Training, measure
from conr.training.group import finetune
from conr.training.instance import examined, pretrain
from stages.console import show_cursor
from stages.params_file import changed, view_of
from stages.paths import STORE, TRIALS
from stages.pretrain import fresh_model
from stages.scratch import scratch
from stages.tables import aligned

# What a step takes does not depend on the learning rate: with next to none, no estimate diverges, and what begins
# after the warm-up (noise, prototype scattering) is timed from the first epoch on.
STANDING_STILL = {"optimiser.base_learning_rate": 1e-9, "optimiser.warmup_epochs": 0}
NOTES = (
    "Timed with fresh networks: on the features of trained ones k-means may take more iterations, or fewer.",
    "extract and evaluate come on top: extract embeds all images once with pretrain's weights and once a seed.",
)


@dataclass(frozen=True)
class Trial:
    """What a stage will take.

    Attributes:
        cost: images, operations and times.
        memory: bytes, the peak of its process.
        device_memory: bytes on the GPU, or None without one.
        weights: bytes of the weights that it writes.
        device: where it was tried.
    """

    cost: Cost
    memory: int
    device_memory: int | None
    weights: int
    device: str


def run(params: ParamsFile, progress: Progress) -> str:
    """Try both training stages; returns the table of what they will take, and warnings."""
    trials = try_both(params, progress)
    return "\n".join(["", *report(trials, shutil.disk_usage(scratch()).free, machine_memory())])


def try_both(params: ParamsFile, progress: Progress) -> dict[str, Trial]:
    """Try pretrain and finetune on the packed store, each in a process of its own.

    Its start-up and its memory are then those of the stage's command.

    Raises:
        UserError: there is no store, or a stage needs more memory than there is.
    """
    open_store(STORE)
    home = scratch() / TRIALS
    home.mkdir(exist_ok=True)
    trials = {}
    with TemporaryDirectory(prefix="estimate-", dir=home) as folder:
        for stage in ("pretrain", "finetune"):
            try:
                with Workers(1) as pool:
                    trial = pool.submit(try_out, stage, params, Path(folder), progress, time.time())
                    try:
                        trials[stage] = trial.result()
                    except KeyboardInterrupt:
                        pool.kill()
                        raise
            except BrokenProcessPool as error:
                raise UserError(
                    f"{stage} was killed while it was tried, most likely for want of memory; lower "
                    f"{stage}.batch_size or network.width"
                ) from error
            finally:
                show_cursor()  # a process that is killed while it draws a bar leaves none
    return trials


def report(trials: dict[str, Trial], free: int, memory: int) -> list[str]:
    """Lines of text: a row a stage, the total, the disk, and warnings.

    Args:
        trials: by the name of the stage.
        free: bytes free on the disk.
        memory: bytes of memory that the machine has.
    """
    heads = ["images", "steps/epoch", "GFLOP/step", "TFLOP/epoch", "GFLOP/s", "s/epoch", "epochs", "time", "memory"]
    rows = [["", *heads]]
    for stage, trial in trials.items():
        cost = trial.cost
        figures = [cost.measured.step_flops / 1e9, cost.epoch_flops / 1e12, cost.rate / 1e9, cost.epoch_seconds]
        epochs = f"{cost.runs} × {cost.epochs:,}" if cost.runs > 1 else f"{cost.epochs:,}"
        counts = [f"{cost.images:,}", f"{cost.steps:,}"]
        rows.append(
            [stage, *counts, *map(_figure, figures), epochs, duration(cost.seconds), size(trial.memory)]
            + ([size(trial.device_memory)] if trial.device_memory is not None else [])
        )
    rows[0] += ["GPU memory"] * (len(rows[1]) - len(rows[0]))
    last = trials["finetune"]
    runs, checkpoint, weights = last.cost.runs, last.cost.measured.checkpoint, last.weights
    # finetune keeps a checkpoint a seed until it ends, and writes a new one beside the old.
    needed = (runs + 1) * (checkpoint + weights)
    seeds = "one seed" if runs == 1 else f"one pretraining and {runs} seeds of finetune"
    lines = [
        *aligned(rows),
        "",
        f"total    {duration(sum(trial.cost.seconds for trial in trials.values()))} for {seeds}, on {last.device}",
        f"disk     {size(needed)} with weights; a checkpoint takes {size(checkpoint)}; {size(free)} are free",
        *NOTES,
    ]
    if needed > free:
        lines.append(f"Warning: training needs {size(needed)} of disk, {size(free)} are free; make room first")
    for stage, trial in trials.items():
        if trial.memory > memory:
            lines.append(
                f"Warning: {stage} needs {size(trial.memory)} of memory, this machine has {size(memory)}; "
                f"lower {stage}.batch_size or network.width"
            )
    return lines


def duration(seconds: float) -> str:
    """Time for people: its two largest units."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    (large, large_size), (small, small_size) = next(pair for pair in itertools.pairwise(units) if seconds >= pair[0][1])
    whole = round(seconds / small_size) * small_size
    return f"{whole // large_size} {large} {whole % large_size // small_size} {small}"


def size(count: int) -> str:
    """Bytes for people."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{_figure(count / unit)} {name}"


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that limits it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return physical if text == "max" else min(physical, int(text))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def try_out(stage: str, params: ParamsFile, folder: Path, progress: Progress, asked: float) -> Trial:
    """Time a stage on the packed store.

    Args:
        stage: pretrain or finetune.
        params: all parameters.
        folder: where to write checkpoints meanwhile.
        progress: told of every step.
        asked: the time at which the process was asked for.

    Raises:
        UserError: the GPU's memory is too small.
    """
    start_up = time.time() - asked
    store = open_store(STORE)
    compute = Compute.choose(params.device, params.precision)
    model, _ = fresh_model(view_of(PretrainStage, params), store.manifest)
    images, count = store.training_images, store.manifest.train_count
    if stage == "pretrain":
        epochs, batch_size = params.pretrain.epochs, params.pretrain.batch_size
        fewest, runs, ends = params.pretrain.prototypes, 1, sum(examined(epoch, epochs) for epoch in range(epochs))
    else:
        epochs, batch_size = params.finetune.epochs, params.finetune.batch_size
        fewest, runs, ends = params.clusters, len(params.seeds) or 1, epochs
    try:
        measured = measure(
            _training(stage, params, model),
            images,
            store.training_labels,
            batch_size,
            fewest,
            compute.device,
            folder / stage,
            progress,
        )
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{stage} does not fit into the GPU's memory; lower {stage}.batch_size or network.width"
        ) from error
    cost = Cost(measured, count, batch_size, epochs, ends, runs, start_up)
    untried = max(count - measured.images, 0)
    pixels = images[0].nbytes
    features = 2 * 4 * params.network.dimension  # float32, in parts and in one piece
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    on_gpu = compute.device.type == "cuda"
    return Trial(
        cost,
        memory=peak + untried * (pixels + features),
        device_memory=torch.cuda.max_memory_reserved() + untried * pixels if on_gpu else None,
        weights=sum(tensor.nbytes for tensor in model.state_dict().values()),
        device=torch.cuda.get_device_name() if on_gpu else f"the CPU (threads: {torch.get_num_threads()})",
    )


def _training(stage: str, params: ParamsFile, model: Siamese) -> Training:
    """The stage's own function, on this model."""
    first_epoch = params.pretrain.epochs

    def train(
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        epochs: int,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> object:
        own = changed(params, {**STANDING_STILL, f"{stage}.epochs": epochs})
        if stage == "pretrain":
            return pretrain(model, images, labels, view_of(PretrainStage, own), checkpoint, progress)
        return finetune(model, images, labels, view_of(FinetuneStage, own), first_epoch, checkpoint, progress)

    return train
