"""One stay on a GPU: numerics, speed of every way to execute a step, kernels, then the longest training that fits.

    make bench-gpu ARGS='--archive cifar10.tar.gz --seconds 3600'     # run the same command to resume
    bash bench/pack_gpu.sh FOLDER cifar10.tar.gz                      # for a GPU machine without network
    python bench/gpu.py --toy --archive A --out OUT --state STATE     # everything at toy size, on a CPU

The archive holds a folder of images for each class, at any depth. OUT/gpu.json has all that was found; it is written
again after every finding and every epoch, so that nothing of it is lost when this ends, however it ends. OUT/gpu.md has
it as tables. A variant of the step is correct if it changes the weights in 30 steps, in which the learning rate rises,
as the eager step does: the difference is less than half of what other random views make. The fastest correct one trains
the preset cifar10-200, with its epochs scaled to 200, 150, 100 or 60. From one pretraining, ConNR is compared with as
many further epochs of BYOL ("InC"). OUT/features-*.npy are the features of both in half precision.
"""

import json
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from common import ROOT, TRAININGS, head, line, parser
from common import run as run_stage

from conr import Workspace, load_preset
from conr.files import write_text
from conr.processes import Workers

PRESET, EAGER = "cifar10-200", "eager"
VARIANTS: dict[str, dict[str, bool]] = {EAGER: {}}  # name → fields of Execution; those most likely to work come first
LOOKS = 0.45  # of the time, before the training begins; what does not fit is left out
LIMITS = {"device": 60, "numerics": 60, "speed": 120, "kernels": 40}  # seconds, for one of a kind
SCHEDULES, PRETRAINING = (200, 150, 100, 60), 0.8  # epochs of both stages; share of the first
TRAINED = ("pretrain", "ConNR", "InC")  # the others start from the first
IN_STEPS = 0.93  # of the time of an epoch; clustering, scores and checkpoints take the rest
SCORING = 60  # seconds of clustering and scoring the last features
METHODS, SCORES = ("kmeans", "graph"), ("acc", "nmi", "ari")
TOY = {
    **{"device": "cpu", "k": 5, "k1": 5, "pretrain.batch_size": 40, "finetune.batch_size": 40, "evaluate.n_init": 2},
    **{"network.width": 4, "network.hidden": 32, "network.dimension": 16, "prepare.image_size": 16},
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
    later: float = 0.0
    toy: bool = False

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
        print(f"{self.left:5.0f} s left: {name}", flush=True)
        self.publish()

    def publish(self) -> None:
        """Write OUT/gpu.json and OUT/gpu.md."""
        found = self.found
        write_text(self.out / "gpu.json", json.dumps(found, indent=1) + "\n")
        write_text(self.out / "gpu.md", tables(found))


def main(arguments: Sequence[str] | None = None, pool: type[Workers] = Workers) -> None:
    """Find what is missing, and train, until the time is over."""
    started = time.monotonic()
    flags = parser(__doc__)
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
    state = given.state / commit()  # other code measures and trains anew
    places = (path.resolve() for path in (given.out, state, given.archive))
    run = Run(*places, started + given.seconds, given.later, given.toy)
    try:
        with pool(1, kill_on_error=True) as beside, Device(pool) as device:
            work(run, beside, device)
    except TimeoutError:
        sys.exit("the time is over; run the same command to resume")
    finally:
        run.publish()
        print(tables(run.found))


def commit() -> str:
    """Of the code, with a + if it was changed since; a packed folder has it in a file."""
    packed = ROOT / "COMMIT"
    if packed.exists():
        return packed.read_text(encoding="utf-8").strip()
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def work(run: Run, beside: Workers, device: "Device") -> None:
    """All of it. One process has the GPU; the one beside it packs the images, and scores features.

    Raises:
        TimeoutError: the time was too short.
    """
    packing = beside.submit(called, "gpu.pack", run)
    look(run, device)
    packing.result(timeout=run.left)
    if "plan" not in run.found:
        run.keep("plan", plan(run))
    scores = []
    for name in TRAINED:
        if not train(run, device, name):
            break
        scores.append(beside.submit(called, "gpu_cells.score", run, name))
    for score in scores:
        score.result(timeout=run.left)
    if len(scores) < len(TRAINED):
        raise TimeoutError


def called(name: str, *arguments: Any) -> Any:
    """What a function of a module returns, by name: only processes that compute import PyTorch."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)(*arguments)


class Device:
    """A process that has the GPU. After an error or too long a time it is replaced: its context may be broken."""

    def __init__(self, pool: type[Workers] = Workers) -> None:
        self.make, self.pool = pool, None

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *error: Any) -> None:
        if self.pool is not None:
            self.pool.__exit__(*error)
            self.pool = None

    def call(self, limit: float, name: str, *arguments: Any) -> Any:
        """What a function returns within a limit of seconds.

        Raises:
            TimeoutError: it does not.
        """
        self.pool = self.pool or self.make(1, kill_on_error=True)
        try:
            return self.pool.submit(called, name, *arguments).result(timeout=limit)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise


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


def look(run: Run, device: Device) -> None:
    """Find what is missing of all that comes before the training; a failure is a finding, too."""
    end = run.deadline - (1 - LOOKS) * run.left
    for name in () if "plan" in run.found else looks(run):
        (kind, _, variant), seconds = name.partition(", "), run.found.get("seconds", {})
        started = time.monotonic()
        limit = min(LIMITS[kind], end - started)
        if name in seconds or limit <= 0:
            continue
        try:
            run.keep(name, device.call(limit, f"gpu_cells.{kind}", run, *filter(None, [variant])))
        except Exception as error:
            why = f"no result within {limit:.0f} s" if isinstance(error, TimeoutError) else one_line(error)
            run.keep(name, {**run.found.get(name, {}), "failed": why})
        run.keep("seconds", {**seconds, name: round(time.monotonic() - started, 1)})


def one_line(error: Exception) -> str:
    """The kind of an error, and the beginning of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def looks(run: Run) -> Iterator[str]:
    """What to find out. The last one is known when the speeds are."""
    yield from ("device", "numerics", *(f"speed, {variant}" for variant in VARIANTS), f"kernels, {EAGER}")
    yield f"kernels, {fastest(run.found)}"


def is_correct(found: Mapping[str, Any], variant: str) -> bool:
    """Whether the weights of both stages come out as those of the eager step do."""
    row, eager = (found.get(f"speed, {name}", {}) for name in (variant, EAGER))
    return all(
        stage in row and stage in eager and row[stage]["difference"] < eager[stage]["other views"] / 2
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


def train(run: Run, device: Device, name: str) -> bool:
    """Whether a training has ended in time. Where the fastest variant fails, the eager one resumes.

    Raises:
        TimeoutError: it has not even ended itself in time.
    """
    try:
        return device.call(run.left, "gpu_cells.train", run, name)
    except TimeoutError:
        raise
    except Exception as error:
        own = run.found["plan"]
        run.keep(f"{name} failed", {"variant": own["variant"], "failed": one_line(error)})
        if own["variant"] == EAGER:
            raise
        run.keep("plan", {**own, "variant": EAGER})
        return train(run, device, name)


def tables(found: Mapping[str, Any]) -> str:
    """The findings as Markdown."""
    outcomes = [row["outcome"] for row in found.get("numerics", {}).values() if isinstance(row, dict)]
    facts = (("images/s", 1), ("share", 100), ("difference", 1))
    heads = [f"{stage}: {fact}" for stage in TRAININGS for fact in ("images/s", "% of bf16 products", "difference")]
    lines = [f"{found.get('device', {}).get('device')}; numerics: {outcomes.count('passed')} of {len(outcomes)} passed"]
    lines += ["", head("variant", *heads, "correct")]
    for name in VARIANTS:
        row = found.get(f"speed, {name}", {})
        cells = [row[stage][fact] * factor if stage in row else None for stage in TRAININGS for fact, factor in facts]
        lines.append(line(name, *map(shown, cells), row.get("failed", is_correct(found, name))))
    scores = [f"{method}: {score}" for method in METHODS for score in SCORES]
    lines += ["", f"Plan: {found.get('plan')}", "", head("training", "epochs", "seconds", *scores)]
    for name in TRAINED:
        rows, by = found.get(name, []), found.get(f"scores, {name}", {})
        cells = [by.get(method, {}).get(score) for method in METHODS for score in SCORES]
        lines.append(line(name, len(rows), round(sum(row["seconds"] for row in rows)), *map(shown, cells)))
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    """A rounded number."""
    return "–" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
