"""The training step on a GPU: is it right, how fast, where the time goes, and what each lever is worth.

    make bench-gpu                                        # seven minutes or a little more; the same command goes on
    python bench/gpu.py --toy --state /tmp/toy            # everything but lightly at toy size, on a CPU

Every cell that is finished is kept in STATE/cells.json and not run again (delete its lines to repeat it); the tables
of STATE/tables.md are written anew after every cell. SIGTERM ends it between cells or in one. The loop that is timed is
the one of `conr pretrain` and `conr finetune`; parts and levers are patched into it from here. Images are random
pixels: no time depends on them.
"""

import argparse
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_cases import DEVICE, REAL, STAGES, TOY, Case, Row, Size, wait
from gpu_levers import Lever, beginning, levers
from gpu_numerics import numerics_cells
from rows import ROOT
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_step import Stopwatch, compare, conr_rate, device_name

from conr.files import atomic_file
from conr.networks import Siamese
from conr.parameters import PretrainStage
from conr.progress import Progress
from conr.training import group, loop, pseudo_labels
from conr.training.checkpoints import Checkpoint
from conr.training.estimate import measure
from conr.training.instance import InstanceConcordance, pretrain
from conr.training.model import build

UNFINISHED = {"failed": "killed the process"}  # what stays of such a cell, which is not tried again


def main() -> None:
    """Run the cells that are missing, as long as there is time, and print the tables."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=ROOT / ".conr/gpu", help="folder of what is finished")
    parser.add_argument("--minutes", type=float, default=7.0, help="when to start no further cell; one can take two")
    parser.add_argument("--toy", action="store_true", help="tiny networks, to try the benchmark itself")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="only these")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped in a cell; the same command goes on"))
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
        try:
            found[name] = UNFINISHED
            save(found, arguments.state)
            found[name] = tried(cell)
            save(found, arguments.state)
        except SystemExit:
            if found[name] == UNFINISHED:
                del found[name]
            save(found, arguments.state)
            raise
        print(f"{name}: {time.monotonic() - began:.0f} s {found[name].get('failed', '')}", flush=True)
        wait()  # after an error of the device itself nothing more can be had of this process
        torch.cuda.empty_cache()
    print(tables(found))
    missing = sum(name not in found for name in cells)
    print(f"\n{missing} of {len(cells)} cells are missing" + ("; go on" if missing else ""))


def tried(cell: Callable[[], Row]) -> Row:
    """What a cell finds, or why it fails: a lever may not exist everywhere, and the others are still worth having."""
    try:
        return {"device": f"{device_name()}, torch {torch.__version__}", **cell()}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


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


def loop_rate(
    case: Case, stage: str, watch: Stopwatch | None = None, changes: Mapping[str, Any] | None = None
) -> float:
    """Images per second of conr's own loop."""
    settings = case.settings(stage, changes)
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


def lever_cells(size: Size) -> dict[str, Callable[[], Row]]:
    """Each lever of the first stage alone, with batches of the paper's size below 224 pixels."""
    return {
        f"{case_name}, {name}": partial(lever_gain, case, lever, size.repeats)
        for case_name, case in size.cases.items()
        if case.batch <= 256 and case.size < 224
        for name, lever in levers(size).items()
    }


def lever_gain(case: Case, lever: Lever, repeats: int) -> Row:
    """As conr is, and with the lever, in turn."""
    context, changes = lever
    plain, switched = [], []
    for _ in range(repeats):
        plain.append(loop_rate(case, "pretrain"))
        with context():
            switched.append(loop_rate(case, "pretrain", changes=changes))
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
        settings = case.settings(stage, {f"{stage}.epochs": epochs, "optimiser.base_learning_rate": 1e-9})
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
    "step": step_cells,
    "parts": parts_cells,
    "ordinary": ordinary_cells,
    "epochs": epoch_cells,
    "numerics": numerics_cells,  # compiling makes its last cells, and the levers, slow
    "levers": lever_cells,
}

if __name__ == "__main__":
    main()
