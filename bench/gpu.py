"""One stay on a GPU: numerics, speed of every way to execute a step, kernels, then the longest training that fits.

    make bench-gpu ARGS='--archive cifar10.tar.gz --seconds 3600'     # run the same command to resume
    bash bench/pack_gpu.sh FOLDER cifar10.tar.gz                      # for a GPU machine without network
    python bench/gpu.py --toy --archive A --out OUT --state STATE     # everything at toy size, on a CPU

The archive holds a folder of images for each class, at any depth. OUT/gpu.json has all that was found; it is written
again after every finding and every epoch, so that nothing of it is lost when this ends, however it ends. A variant of
the step is correct if 30 steps, in which the learning rate rises, come out as those of the eager step: the weights
differ by less than half of what a constant learning rate makes, the losses by less than half of what other random views
make. The fastest correct variant trains the preset cifar10-200, with its epochs scaled to 200, 150, 100 or 60. From one
pretraining, ConNR is compared with as many further epochs of BYOL ("InC"). OUT/features-*.npy are features of all
images in half precision.
"""

import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from common import ROOT, TRAININGS, parser
from common import run as run_stage

from conr import Workspace, load_preset
from conr.files import write_text
from conr.processes import Workers

PRESET, EAGER = "cifar10-200", "eager"
# Name → fields of Execution; those most likely to work come first. The optimizer is fused in all of them: the other one
# reads the learning rate, which is a tensor, from the GPU.
VARIANTS = {
    EAGER: {"fused_optimizer": True},
    "recorded": {"fused_optimizer": True, "graph": True},
    "recorded, one forward": {"fused_optimizer": True, "graph": True, "one_forward": True},
    "recorded, compiled": {"fused_optimizer": True, "graph": True, "compiled": True},
    "recorded, compiled, one forward": {"fused_optimizer": True, "graph": True, "compiled": True, "one_forward": True},
}
LOOKS = 0.45  # of the time, before the training begins; what does not fit is left out
LIMITS = {"device": 120, "numerics": 120, "speed": 180, "kernels": 90}  # seconds, for one of a kind
SCHEDULES, PRETRAINING = (200, 150, 100, 60), 0.8  # epochs of both stages; share of the first
TRAINED = ("pretrain", "ConNR", "InC")  # the others start from the first
IN_STEPS = 0.93  # of the time of an epoch; clustering, scores and checkpoints take the rest
SCORING = 60  # seconds of clustering and scoring the last features
TOY = {
    **{"device": "cpu", "precision": "float32", "prepare.image_size": 16, "k": 5, "k1": 5, "evaluate.n_init": 2},
    **{"network.width": 4, "network.hidden": 32, "network.dimension": 16, "network.stem": "imagenet"},
    **{"pretrain.batch_size": 40, "finetune.batch_size": 40},
}


@dataclass(frozen=True)
class Run:
    """Where findings are kept, and until when to work. Every process has one.

    Attributes:
        out, state, archive: folder of the results, folder of what is resumed from, images.
        deadline: on the clock of `time.monotonic`, which all processes share.
        later: seconds that a later call will have.
        toy: whether all is at toy size.
    """

    out: Path
    state: Path
    archive: Path
    deadline: float
    later: float
    toy: bool

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def found(self) -> dict[str, Any]:
        """All findings, the oldest first."""
        files = sorted((self.state / "found").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def keep(self, name: str, value: object) -> None:
        """Keep a finding in a file of its own, then write all of them to OUT."""
        write_text(self.state / f"found/{name}.json", json.dumps(value))
        write_text(self.out / "gpu.json", json.dumps(self.found, indent=1) + "\n")
        print(f"{self.left:5.0f} s left: {name}", flush=True)


class FailedError(Exception):
    """Something failed, which is kept; its process may be of no more use."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Find what is missing, and train, until the time is over."""
    started, flags = time.monotonic(), parser(__doc__)
    flags.add_argument("--archive", type=Path, required=True, help="tar.gz of images, in folders named by class")
    flags.add_argument("--seconds", type=float, default=3600, help="when to end")
    flags.add_argument("--later", type=float, default=0, help="seconds that the next call will have")
    flags.add_argument("--out", type=Path, default=ROOT / ".conr/gpu/out", help="folder of the results")
    flags.add_argument("--state", type=Path, default=ROOT / ".conr/gpu", help="folder of what is resumed from")
    flags.add_argument("--toy", action="store_true", help="tiny networks, to try the benchmark itself")
    given = flags.parse_args(arguments)
    if not given.archive.is_file():
        flags.error(f"--archive: {given.archive} is not a file")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    places = (path.resolve() for path in (given.out, given.state / commit(), given.archive))
    run = Run(*places, started + given.seconds, given.later, given.toy)
    end = started + LOOKS * given.seconds
    while True:
        try:
            # One process has the GPU; the one beside it packs the images, and scores features.
            with Workers(1, kill_on_error=True) as device, Workers(1, kill_on_error=True) as beside:
                return work(run, end, device, beside)
        except FailedError:
            print("once more without it", flush=True)
        except TimeoutError:
            sys.exit("the time is over; run the same command to resume")


def commit() -> str:
    """Of the code, with a + if it was changed since; a packed folder has it in a file."""
    if (ROOT / "COMMIT").exists():
        return (ROOT / "COMMIT").read_text(encoding="utf-8").strip()
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def work(run: Run, end: float, device: Executor, beside: Executor) -> None:
    """All that is missing; until `end` what comes before the training.

    Raises:
        FailedError: a part of it failed.
        TimeoutError: the time was too short.
    """
    packing = beside.submit(called, "gpu.pack", run)
    if "plan" not in run.found:
        look(run, device, end, ["device", "numerics"])
        packing.result(timeout=run.left)
        variants = [EAGER, list(VARIANTS)[-1]] if run.toy else VARIANTS
        look(run, device, end, (f"speed, {variant}" for variant in variants))
        look(run, device, end, (f"kernels, {variant}" for variant in dict.fromkeys((EAGER, fastest(run.found)))))
        run.keep("plan", plan(run))
    packing.result(timeout=run.left)
    scores = []
    for name in TRAINED:
        device.submit(called, "gpu_cells.train", run, name).result(timeout=run.left)
        scores.append(beside.submit(called, "gpu_cells.score", run, name))
    for score in scores:
        score.result(timeout=run.left)


def called(name: str, *arguments: Any) -> Any:
    """What a function of a module returns, by its name: only processes that compute import PyTorch."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)(*arguments)


def pack(run: Run) -> None:
    """The archive's images → the store."""
    if "images" in run.found:
        return
    with tarfile.open(run.archive) as archive:
        archive.extractall(run.state / "images", filter="data")
    source = {"prepare.source": "folder", "prepare.path": str(run.state / "images"), "prepare.labels": "parent"}
    parameters = load_preset(PRESET).changed({**(TOY if run.toy else {}), **source})
    manifest = run_stage("prepare", Workspace.at(run.state), parameters)
    run.keep("images", {"archive": run.archive.name, "count": manifest.count, "checksum": manifest.checksum})


def look(run: Run, device: Executor, end: float, names: Iterable[str]) -> None:
    """Find what is missing, unless the time for that ends.

    Raises:
        FailedError: this failed, which is a finding, too.
    """
    for name in names:
        (kind, _, variant), seconds, started = name.partition(", "), run.found.get("seconds", {}), time.monotonic()
        limit = min(LIMITS[kind], end - started)
        if name in seconds or limit <= 0:
            continue
        failure = None
        try:
            found = device.submit(called, f"gpu_cells.{kind}", run, *filter(None, [variant])).result(timeout=limit)
        except Exception as error:
            failure = f"{type(error).__name__}: {str(error) or f'{limit:.0f} s'}".splitlines()[0][:300]
            found = {**run.found.get(name, {}), "failed": failure}
        run.keep(name, found)
        run.keep("seconds", {**seconds, name: round(time.monotonic() - started, 1)})
        if failure:
            raise FailedError(failure)


def is_correct(found: Mapping[str, Any], variant: str) -> bool:
    """Whether weights and losses of both stages come out as those of the eager step do."""
    row, eager = (found.get(f"speed, {name}", {}) for name in (variant, EAGER))
    return all(
        stage in row
        and stage in eager
        and row[stage]["weights"] < eager[stage]["weights, constant rate"] / 2
        and row[stage]["losses"] < eager[stage]["losses, other views"] / 2
        for stage in TRAININGS
    )


def rate(found: Mapping[str, Any], variant: str) -> float:
    """Images/s of the slower stage; 0 if it is not known."""
    row = found.get(f"speed, {variant}", {})
    return min((row[stage]["images/s"] for stage in TRAININGS if stage in row), default=0.0)


def fastest(found: Mapping[str, Any]) -> str:
    """Of the variants that are correct; the eager one if none is known to be."""
    return max(
        (name for name in VARIANTS if is_correct(found, name)), key=lambda name: rate(found, name), default=EAGER
    )


def plan(run: Run) -> dict[str, Any]:
    """The longest schedule that fits into this call and the next, the comparison included; else the shortest."""
    variant = fastest(run.found)
    images = (run.left + run.later - SCORING) * IN_STEPS * rate(run.found, variant)
    epochs = images / run.found["images"]["count"] / (1 + 1 - PRETRAINING)
    total = 5 if run.toy else next((length for length in SCHEDULES if length <= epochs), SCHEDULES[-1])
    first = round(PRETRAINING * total)
    return {"variant": variant, "epochs that fit": round(epochs, 1), "pretrain": first, "finetune": total - first}


if __name__ == "__main__":
    main()
