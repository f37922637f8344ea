"""The training step on a GPU: speed, the time of an epoch, the parts of the step, and the gain of each lever.

    make bench-gpu                                        # about ten minutes; run the same command to resume
    python bench/gpu.py --toy --state /tmp/toy            # everything at toy size, on a CPU

Every finished cell is kept in STATE/cells.json and not run again (delete its lines to repeat it); the tables of
STATE/tables.md are written again after every cell. SIGTERM ends it at any time. The loop that is timed is the one of
`conr pretrain` and `conr finetune`; levers are patched into it from here. Images are random pixels: no time depends on
them. What PyTorch does not offer is shown as failed, with the reason. The kernels are compared with float64 by
`pytest -m numerics`.
"""

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from common import ROOT, TRAININGS, head, in_turns, line, parser
from gpu_levers import Lever, levers
from torch.autograd import DeviceType
from torch.profiler import profile, record_function
from torch.utils.benchmark import Timer
from training_step import DEVICE, ON_GPU, Case, Stopwatch, random_images

from conr.files import write_text
from conr.models.siamese import Siamese
from conr.observer import SILENT
from conr.pipeline.estimate import try_out
from conr.training.compute import machine

Row = dict[str, Any]  # what a cell found

TABLES = ("device", "stages", "parts", "levers")
KILLED = {"failed": "killed the process"}  # what stays of such a cell, which is not tried again
CASES = {
    "ResNet-18, 32 px, batch 256": Case("cifar10", 32, 256, 60_000, timed=100),
    "ResNet-18, 32 px, batch 1024": Case("cifar10", 32, 1024, 60_000),
    "ResNet-34, 96 px, batch 256": Case("stl10", 96, 256, 13_000),
    "ResNet-34, 224 px, batch 256": Case("imagenet-dogs", 224, 256, 6_400, timed=14),
}
TINY = {"network.width": 4, "network.hidden": 32, "network.dimension": 16}
TOYS = {"toy, 16 px, batch 16": Case("cifar10", 16, 16, 64, 1, 2, TINY)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing, and print the tables."""
    flags = parser(__doc__)
    flags.add_argument("--state", type=Path, default=ROOT / ".conr/gpu", help="folder of what is finished")
    flags.add_argument("--toy", action="store_true", help="tiny networks, to try the benchmark itself")
    flags.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="only these")
    given = flags.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped in a cell; run the same command to resume"))
    file = given.state / "cells.json"
    found: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
    for name, cell in cells(given.toy).items():
        if name.split(": ")[0] in given.tables and name not in found:
            run(name, cell, found, given.state)
    print(tables(found))


def cells(toy: bool) -> dict[str, Callable[[], Row]]:
    """Everything that is measured: table and row → how."""
    cases, size, repeats, backend = (TOYS, 256, 1, "eager") if toy else (CASES, 8192, 3, "inductor")
    found: dict[str, Callable[[], Row]] = {f"device: products of {size}³, copies": partial(device_rates, size)}
    for (name, case), stage in product(cases.items(), TRAININGS):
        found[f"stages: {name}, {stage}"] = partial(stage_costs, case, stage, size)
        found[f"parts: {name}, {stage}"] = partial(step_parts, case, stage)
    for (name, case), (lever_name, lever) in product(cases.items(), levers(backend).items()):
        if case.batch <= 256 and case.size < 224:
            found[f"levers: {name}, {lever_name}"] = partial(lever_gain, case, lever, repeats)
    return found


def run(name: str, cell: Callable[[], Row], found: dict[str, Row], state: Path) -> None:
    """Run a cell and keep what it finds, or why it fails: the others are still worth having."""
    started = time.monotonic()
    try:
        save({**found, name: KILLED}, state)
        found[name] = {"device": machine(DEVICE), **cell()}
    except Exception as error:
        found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    finally:
        save(found, state)
    print(f"{name}: {time.monotonic() - started:.0f} s {found[name].get('failed', '')}", flush=True)
    if ON_GPU:
        torch.cuda.synchronize()  # after an error of the device itself this process can do nothing more, and ends here
        torch.cuda.empty_cache()


def save(found: Mapping[str, Row], folder: Path) -> None:
    """Write cells and tables."""
    write_text(folder / "cells.json", json.dumps(found, indent=1))
    write_text(folder / "tables.md", tables(found))


def tables(found: Mapping[str, Row]) -> str:
    """The cells as Markdown, a table for each kind of them."""
    lines = []
    for table in TABLES:
        rows = {name.split(": ", 1)[1]: row for name, row in found.items() if name.startswith(f"{table}: ")}
        if rows:
            heads = dict.fromkeys(key for row in rows.values() for key in row if key != "device")
            devices = sorted({row["device"] for row in rows.values() if "device" in row})
            lines += [f"\n## {table}\n", "; ".join(devices), "", head("", *heads)]
            lines += [line(name, *(shown(row.get(key)) for key in heads)) for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """A rounded value."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "–" if value is None else str(value)


def device_rates(count: int) -> Row:
    """bf16 matrix products (random data), and copies on the device, counting bytes read and written."""
    left, right = (torch.randn(count, count, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (16 * count**2,), device=DEVICE, dtype=torch.uint8)
    names = {"left": left, "right": right, "source": source, "target": torch.empty_like(source)}
    product, copy = (
        Timer(code, globals=names, num_threads=torch.get_num_threads()).blocked_autorange().median
        for code in ("left @ right", "target.copy_(source)")
    )
    return {"bf16 product, TFLOP/s": 2 * count**3 / product / 1e12, "copy, GB/s": 2 * source.nbytes / copy / 1e9}


def stage_costs(case: Case, stage: str, size: int) -> Row:
    """A step and the end of an epoch as `conr estimate` measures them; FLOPs are those of whole steps."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder:
        images = random_images(case.images, case.size)
        cost = try_out(stage, images, case.parameters(), Path(folder), SILENT, time.time())
    rate, best = cost.flops / cost.step, 1e12 * device_rates(size)["bf16 product, TFLOP/s"]
    return {
        "images/s": case.batch / cost.step,
        "ms per step": 1e3 * cost.step,
        "memory, GB": None if cost.device_memory is None else cost.device_memory / 1e9,
        "GFLOP per image": cost.flops / case.batch / 1e9,
        "TFLOP/s": rate / 1e12,
        "share of the bf16 rate, %": 100 * rate / best,
        "s of features, k-means and scores": cost.end,
        "s of saving the checkpoint": cost.save,
        "weights and checkpoint, MB": cost.disk / 1e6,
        "s per epoch": cost.epoch_seconds,
    }


BEGINS = {  # what a step has computed → the part that begins then; the backward pass has threads and events of its own
    "learning rates": "views",
    "pixels": "forward",
    "outputs": "loss",
    "neighbors": "boundary",
    "candidates": "loss",
    "total loss": None,
    "gradient": "optimizer",
    "weights": "moving average",
    "target weights": None,
}
SEARCHES = {"outputs": "neighbors", "one direction": "neighbors", "group loss": "loss"}  # in finetune
PARTS = (*dict.fromkeys(filter(None, (BEGINS | SEARCHES).values())), "target forward", "backward")
BACKWARD = "autograd::engine::evaluate_function"


class Parts(Stopwatch):
    """Profiles the timed steps in ranges, which begin where the loop says what it has computed."""

    def __init__(self, case: Case, stage: str) -> None:
        super().__init__(case)
        self.profiler, self.range = profile(), ExitStack()
        self.begins = BEGINS | (SEARCHES if stage == "finetune" else {})

    def traced(self, name: str, value: object) -> None:
        if name in self.begins:
            self.range.close()
            if part := self.begins[name]:
                self.range.enter_context(record_function(part))

    def step_done(self, amount: int = 1, note: str = "") -> None:
        if self.count + 1 == self.case.skipped:
            self.profiler.start()
        super().step_done()

    def milliseconds(self) -> dict[str, float]:
        """Of each part: of its kernels on a GPU, else of the processor."""
        self.profiler.stop()
        found = dict.fromkeys(PARTS, 0.0)
        for event in self.profiler.key_averages():
            name = "backward" if event.key.startswith(BACKWARD) else event.key
            if name in found and event.device_type == DeviceType.CPU:
                found[name] += (event.device_time_total if ON_GPU else event.cpu_time_total) / 1e3
        return found


def step_parts(case: Case, stage: str) -> Row:
    """In percent of the step; on a GPU the rest holds the time in which it waits for the CPU."""
    watch = Parts(case, stage)
    with mock.patch.object(Siamese, "project", record_function("target forward")(Siamese.project)):
        rate = case.rate(stage, watch)
    whole = 1e3 * case.timed * case.batch / rate
    found = watch.milliseconds()
    found["online forward"] = found.pop("forward") - found["target forward"]
    shares = {f"{name}, %": 100 * taken / whole for name, taken in found.items()}
    return {"ms per step, profiled": whole / case.timed, **shares, "the rest, %": 100 - sum(shares.values())}


def lever_gain(case: Case, lever: Lever, repeats: int) -> Row:
    """The first stage as conr has it, and with the lever, in turns."""

    def rate() -> float:
        with lever():
            return case.rate("pretrain")

    calls = {"conr": partial(case.rate, "pretrain"), "lever": rate}
    plain, switched = (found.results for found in in_turns(calls, repeats).values())
    return {
        "conr, images/s": statistics.median(plain),
        "with the lever": statistics.median(switched),
        "ratio": statistics.median(switched) / statistics.median(plain),
        "conr, lowest to highest": f"{min(plain):,.0f}-{max(plain):,.0f}",
    }


if __name__ == "__main__":
    main()
