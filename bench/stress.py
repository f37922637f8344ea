"""Kills, full disks, damaged files and two of everything at once: nothing may be lost.

    make stress                                    # an hour on two CPU cores; run the same command to resume
    python bench/stress.py --minutes 2 --seed 1    # another two minutes; or --trials 9

Every trial is a function of its number and the seed. It works on a copy of a tiny project and survives if the command
ends as the user was promised: with the artifacts of an undisturbed run, byte for byte; or with a refusal (exit code 2,
no trace), after which the same command, undisturbed, ends with them. A trace, a hang, and a result that differs in
silence are lost. Finished trials are kept in STATE/trials.csv and not repeated.

- kill: SIGKILL at a random time in a random stage, which is then run again.
- repro: SIGKILL, SIGTERM or SIGHUP at a random time to `dvc repro`, alone or with its group; then `dvc repro`.
- disk: a file system of a random size (needs the right to mount a tmpfs), which then gets larger.
- damage: random bytes of a random file that conr reads are changed, cut or added; then the stage that reads it runs.
- twice: two of the same stage at once.
- fuzz: two hundred mutations of files that conr reads, against the loader of each (fuzz.py).
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from common import ROOT, head, line, parser, set_values
from fuzz import fuzz

from conr.files import load_table, sha256_of, write_table
from conr.parameters import STAGES
from conr.pipeline.project import make

TINY = {
    "device": "cpu",
    "prepare.imbalance": 20.0,
    "network.width": 4,
    "network.hidden": 16,
    "network.dimension": 8,
    "optimizer.warmup_epochs": 1,
    "optimizer.schedule_epochs": 10,
    "pretrain.epochs": 3,
    "pretrain.batch_size": 64,
    "finetune.epochs": 2,
    "finetune.batch_size": 64,
    "evaluate.n_init": 2,
    "evaluate.gallery": 2,
    "evaluate.context": 64,
}
MUTATIONS = 200  # of a trial
LONGEST = 240  # seconds after which a command hangs
MADE = {  # by a stage
    "prepare": ["artifacts/store"],
    "pretrain": ["artifacts/pretrain"],
    "finetune": ["artifacts/finetune"],
    "extract": ["artifacts/embeddings", "artifacts/encoder.onnx"],
    "evaluate": ["results"],
}
READERS = {  # file → the stage that reads it first
    "params.yaml": "prepare",
    "artifacts/store/manifest.json": "pretrain",
    "artifacts/store/images.npy": "pretrain",
    "artifacts/pretrain/weights.safetensors": "finetune",
    "artifacts/pretrain/log.csv": "finetune",
    "artifacts/pretrain/record.json": "finetune",
    "artifacts/finetune/0/weights.safetensors": "extract",
    "artifacts/finetune/record.json": "extract",
    "artifacts/embeddings/0.npy": "evaluate",
    "artifacts/embeddings/pretrained.npy": "evaluate",
    "artifacts/embeddings/record.json": "evaluate",
}
CONR, DVC = (Path(sys.executable).with_name(name) for name in ("conr", "dvc"))


class LostError(Exception):
    """A promise was broken."""


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--minutes", type=float, default=60)
    flags.add_argument("--trials", type=int, help="end after so many, the finished ones among them")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    flags.add_argument("--state", type=Path, default=ROOT / ".conr/stress", help="folder of what is finished")
    given = flags.parse_args()
    table = given.state / "trials.csv"
    trials = [tuple(row.values()) for row in load_table(table, "delete it")] if table.exists() else []
    project, until, number = reference(given.state), time.monotonic() + 60 * given.minutes, 0
    while time.monotonic() < until and number != given.trials:
        kind, number = given.kinds[number % len(given.kinds)], number + 1
        name = f"{kind} {given.seed}-{number}"
        if name not in {trial[0] for trial in trials}:
            trials.append((name, *attempt(kind, name, project)))
            write_table(table, ["trial", "outcome", "what"], trials)
            print(*trials[-1], flush=True)
    print("\n" + head("kind", "tried", "survived", "lost"))
    for kind in KINDS:
        count = Counter(outcome for name, outcome, _ in trials if name.split()[0] == kind)
        print(line(kind, count.total(), count["survived"], count["lost"]))
    sys.exit(any(outcome == "lost" for _, outcome, _ in trials))


def reference(state: Path) -> Path:
    """A project that nothing has disturbed."""
    project = state / "project"
    if not (project / "finished").exists():
        shutil.rmtree(project, ignore_errors=True)
        make(project, "digits", git=False)
        set_values(project / "params.yaml", TINY)
        done(run(project, [DVC, "repro"]))
        (project / "finished").touch()
    return project


def attempt(kind: str, name: str, project: Path) -> tuple[str, str]:
    """Make a trial in a copy of the project; returns its outcome and what was done."""
    folder = Path(mkdtemp(prefix="conr-stress-"))
    own, chance, what = folder / "project", random.Random(name), [""]
    try:
        KINDS[kind](project, own, chance, what)
    except LostError as lost:
        shutil.copytree(own, project.parent / "lost" / name, symlinks=True, dirs_exist_ok=True)
        return "lost", f"{what[0]}: {lost}"
    finally:
        subprocess.run(["umount", own], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
    return "survived", what[0]


def kill(project: Path, own: Path, chance: random.Random, what: list[str]) -> None:
    stage = before_a_stage(project, own, chance)
    what[0] = f"SIGKILL in {stage}"
    command = start(own, [CONR, stage])
    stop(command, chance.uniform(0.0, 12.0), signal.SIGKILL, group=False)
    done(run(own, [CONR, stage]))
    same(project, own, MADE[stage])


def repro(project: Path, own: Path, chance: random.Random, what: list[str]) -> None:
    before_a_stage(project, own, chance)
    number, group = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP]), chance.random() < 0.5
    what[0] = f"{number.name} to dvc{' and its group' if group else ''}"
    command = start(own, [DVC, "repro"])
    stop(command, chance.uniform(0.0, 40.0), number, group)
    for _ in range(3):
        result = run(own, [DVC, "repro"])
        if result.returncode == 0:
            break
        time.sleep(6)  # DVC, or a stage that is just ending, still has its lock
    done(result)
    same(project, own)


def disk(project: Path, own: Path, chance: random.Random, what: list[str]) -> None:
    own.mkdir()
    size = chance.randrange(200, 9000)
    what[0] = f"a disk of {size} kB"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", own], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        what[0] = "not tried: no right to mount"
        return
    for file in ("params.yaml", "dvc.yaml"):
        shutil.copy(project / file, own)
    for stage in STAGES:
        result = run(own, [CONR, stage])
        if result.returncode != 0:
            refused(result)
            if "disk is full" not in result.stderr:
                raise LostError(result.stderr[-300:])
            subprocess.run(["mount", "-o", "remount,size=64m", own], check=True)
            done(run(own, [CONR, stage]))
    same(project, own)


def damage(project: Path, own: Path, chance: random.Random, what: list[str]) -> None:
    shutil.copytree(project, own, symlinks=True)
    name, stage = chance.choice(list(READERS.items()))
    file = own / name
    content, position = bytearray(file.read_bytes()), 0
    position = chance.randrange(len(content))
    ways = {
        "a bit changed": lambda: content.__setitem__(position, content[position] ^ (1 << chance.randrange(8))),
        "the end cut": lambda: content.__delitem__(slice(position, None)),
        "bytes added": lambda: content.__setitem__(
            slice(position, position), chance.randbytes(chance.randrange(1, 99))
        ),
        "bytes lost": lambda: content.__delitem__(slice(position, position + chance.randrange(1, 99))),
        "nonsense": lambda: content.__setitem__(slice(None), chance.randbytes(len(content) // 2)),
    }
    way = chance.choice(list(ways))
    ways[way]()
    file.unlink()
    file.write_bytes(content)
    what[0] = f"{name}, {way} at {position}"
    result = run(own, [CONR, stage])
    if result.returncode != 0:
        refused(result)
    elif name != "params.yaml":  # another value of a parameter is no damage
        same(project, own, MADE[stage])


def twice(project: Path, own: Path, chance: random.Random, what: list[str]) -> None:
    stage = before_a_stage(project, own, chance)
    what[0] = f"two of {stage}"
    commands = [start(own, [CONR, stage])]
    time.sleep(chance.uniform(0.0, 3.0))
    commands.append(start(own, [CONR, stage]))
    results = [finish(command) for command in commands]
    for result in results:
        if result.returncode != 0:
            refused(result)
    if all(result.returncode for result in results):
        raise LostError("both were refused")
    same(project, own, MADE[stage])


def fuzzed(project: Path, own: Path, chance: random.Random, what: list[str]) -> None:
    shutil.copytree(project, own, symlinks=True)
    what[0] = f"{MUTATIONS} mutations"
    if wrong := fuzz(own, chance, MUTATIONS):
        raise LostError(wrong)


KINDS: dict[str, Callable[[Path, Path, random.Random, list[str]], None]] = {
    "kill": kill,
    "damage": damage,
    "fuzz": fuzzed,
    "repro": repro,
    "disk": disk,
    "twice": twice,
}


def before_a_stage(project: Path, own: Path, chance: random.Random) -> str:
    """Copy the project without what a random stage and all stages after it made; returns the stage."""
    shutil.copytree(project, own, symlinks=True)
    stage = chance.choice(list(STAGES))
    for later in list(STAGES)[list(STAGES).index(stage) :]:
        for path in (own / name for name in MADE[later]):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return stage


def start(folder: Path, command: list[Path | str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(CONR.parent), os.environ["PATH"]])  # the conr of this environment, for DVC
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def finish(command: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        output, errors = command.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired as hang:
        raise LostError("it hangs") from hang
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command.args, command.returncode, output, errors)


def run(folder: Path, command: list[Path | str]) -> subprocess.CompletedProcess[str]:
    return finish(start(folder, command))


def stop(command: subprocess.Popen[str], after: float, number: signal.Signals, group: bool) -> None:
    """Send a signal after so many seconds, if the command has not ended, and wait until all its processes have."""
    with suppress(subprocess.TimeoutExpired):
        command.communicate(timeout=after)
        return
    with suppress(ProcessLookupError):
        os.killpg(command.pid, number) if group else command.send_signal(number)
    try:
        command.communicate(timeout=30)  # its pipes close when the last process that holds them has ended
    except subprocess.TimeoutExpired as left:
        raise LostError("a process lives on") from left


def done(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode != 0:
        raise LostError(f"exit code {result.returncode}: {(result.stderr + result.stdout)[-400:]}")


def refused(result: subprocess.CompletedProcess[str]) -> None:
    """Check that the command has ended with a message for the user."""
    if result.returncode != 2 or "Traceback" in result.stderr or not result.stderr.strip():
        raise LostError(f"exit code {result.returncode}: {(result.stderr + result.stdout)[-400:]}")


def same(project: Path, own: Path, made: Sequence[str] = ("artifacts", "results")) -> None:
    """Check that artifacts and results are those of the undisturbed run; logs hold seconds, and pictures show them."""
    for file in sorted(path for name in made for path in (project / name, *(project / name).rglob("*"))):
        name = file.relative_to(project).as_posix()
        if not file.is_file() or file.suffix in (".csv", ".html", ".png") or file.name == "record.json":
            continue
        if not (own / name).is_file() or sha256_of(own / name) != sha256_of(file):
            raise LostError(f"{name} differs")


if __name__ == "__main__":
    main()
