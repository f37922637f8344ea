"""Table 2 of the paper on CIFAR-10 (as JPEG files), in slices of a few minutes: rows × seeds, table and curves.

    make bench-table2             # ten minutes of it; the same command goes on. Needs a GPU and the archive of images
    python bench/table2.py --preset cifar10 --rows 7 --seeds 0      # the full 1,000 epochs, ConNR only

Seed after seed: one pretraining, then the rows that start from it. What is finished is kept in RESULTS/PRESET.json and
not run again; table and curves beside it are written anew after every seed. What is not finished is kept in STATE, to
the last saved epoch; SIGTERM ends a slice as its last minute does. Labels enter the scores only.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rows import ROOT
from training_step import device_name

from conr.errors import UserError
from conr.files import atomic_file
from conr.parameters import ParamsFile, PrepareStage
from conr.report.paper_figures import score_curves
from conr.report.published import load
from stages import console, params_file, prepare
from stages.ablate import LEGEND, ROWS, mean_and_deviation
from stages.experiments import Experiment, default_jobs, finished, run_experiments
from stages.paths import STORE

ARCHIVE = ROOT.parent / "shared/data/cifar10-jpeg.tar.gz"
IMAGES = "cifar10-jpeg"  # the folder in the archive
PAPER = {entry.method.removesuffix(" (BYOL)").removesuffix(" (ConNR)"): entry for entry in load()}

Run = dict[str, Any]  # a row with a seed: what is written of it


def main() -> None:
    """Run a slice, and write what is finished."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10-200", help="name of a preset, or a params file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 6, 7], help="of Table 2, from 1 to 7")
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop training")
    parser.add_argument("--jobs", type=int, help="trainings side by side (default: one on a GPU); they share its time")
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("--state", type=Path, default=ROOT / ".conr/table2", help="store and weights")
    parser.add_argument("--results", type=Path, default=ROOT / ".conr/results", help="scores, table and curves")
    parser.add_argument("--commit", default=commit(), help="where there is no git: which commit this is")
    arguments = parser.parse_args()
    file = ROOT / f"presets/{arguments.preset}.yaml"
    file = file if file.exists() else Path(arguments.preset)
    content = params_file.read(file)
    content["prepare"] |= {"source": "folder", "path": IMAGES, "labels": "parent"}
    params = params_file.validated(content)
    kept = Kept(arguments.results.resolve() / file.stem, params)
    rows = [ROWS[number - 1] for number in arguments.rows]
    archive = arguments.archive.resolve()

    arguments.state.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.state)
    if not STORE.exists():
        with tarfile.open(archive) as images:
            images.extractall(filter="data")
        print(prepare.run(PrepareStage(prepare=params.prepare), console.progress))
        shutil.rmtree(IMAGES)
    stop = Stop(max(started + 60 * arguments.minutes - time.monotonic(), 0))
    for seed in arguments.seeds:
        waiting = [row for row in rows if not kept.has(row, seed)]
        if not waiting or stop.reached:
            continue
        home = Path(f"{file.stem}-{seed}").resolve()
        home.mkdir(exist_ok=True)
        os.environ["DVC_ROOT"] = str(home)  # weights and checkpoints of this seed
        try:
            run_experiments(params, waiting, [seed], arguments.jobs or default_jobs(params.device), console.progress)
        except UserError:  # training was killed
            if not stop.reached:
                raise
        for (name, _), outcome in finished(params, waiting, [seed]).items():
            kept.add(name, seed, outcome.__dict__, arguments.commit)
        kept.write()
        if all(kept.has(row, seed) for row in rows):
            shutil.rmtree(home)
    missing = sum(not kept.has(row, seed) for row in rows for seed in arguments.seeds)
    print(kept.table())
    print(f"\n{missing} of {len(rows) * len(arguments.seeds)} runs are missing" + ("; go on" if missing else ""))


class Stop:
    """Kills the processes that train when the time has come, or on SIGTERM; a checkpoint is whole whenever that is."""

    def __init__(self, seconds: float) -> None:
        self.reached = False
        self._due = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: self._due.set())
        threading.Thread(target=self._wait, args=(seconds,), daemon=True).start()

    def _wait(self, seconds: float) -> None:
        self._due.wait(seconds)
        self.reached = True
        while True:  # again: a process may just have been starting
            for process in multiprocessing.active_children():
                process.kill()
            time.sleep(1)


class Kept:
    """The finished runs of a preset.

    Args:
        path: of the files, without suffix.
        params: what the runs share; a file that was made with others is refused.
    """

    def __init__(self, path: Path, params: ParamsFile) -> None:
        self.path = path
        self.runs: dict[tuple[str, int], Run] = {}
        self.parameters = params.model_dump(exclude={"prepare", "seed", "seeds"})
        if path.with_suffix(".json").exists():
            content = json.loads(path.with_suffix(".json").read_text())
            if content["parameters"] != self.parameters:
                raise SystemExit(f"{path}.json was made with other parameters; use another --results folder")
            self.runs = {(run["row"], run["seed"]): run for run in content["runs"]}

    def has(self, row: Experiment, seed: int) -> bool:
        """Whether a row is finished with a seed."""
        return (row.name, seed) in self.runs

    def add(self, row: str, seed: int, outcome: Mapping[str, Any], commit: str) -> None:
        """Keep a run, with what it was made on."""
        seconds = sum(epoch["seconds"] for epoch in [*outcome["pretraining"], *outcome["curve"]])
        software = f"Python {platform.python_version()}, torch {torch.__version__}"
        facts = {"seconds": seconds, "device": device_name(), "software": software, "commit": commit}
        self.runs[row, seed] = {"row": row, "seed": seed, **facts, **outcome}

    def write(self) -> None:
        """Runs, table and curves."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"parameters": self.parameters, "runs": list(self.runs.values())}
        texts = {".json": json.dumps(content), ".md": self.table() + "\n"}
        for suffix, text in texts.items():
            with atomic_file(self.path.with_suffix(suffix)) as temporary:
                temporary.write_text(text, encoding="utf-8")
        curves = {name: [run["pretraining"] + run["curve"] for run in runs] for name, runs in self._by_row().items()}
        if curves:
            score_curves(curves, self.path.with_suffix(".png"))

    def table(self) -> str:
        """A row of Table 2 a line: scores of every seed, their mean ± standard deviation, seconds; in Markdown."""
        seeds = sorted({seed for _, seed in self.runs})
        heads = [f"seed {seed}: ACC / NMI / ARI" for seed in seeds] + [*map(str.upper, ("acc", "nmi", "ari"))]
        lines = [f"| | {' | '.join([*heads, 's a run', 'paper: ACC'])} |", f"|{'---|' * (len(heads) + 3)}"]
        for name, runs in self._by_row().items():
            scores = {run["seed"]: run["finetuned"] for run in runs}
            cells = [triple(scores[seed]) if seed in scores else "–" for seed in seeds]
            cells += [mean_and_deviation([score[key] for score in scores.values()]) for key in ("acc", "nmi", "ari")]
            seconds = sum(run["seconds"] for run in runs) / len(runs)
            lines.append(f"| {name} | {' | '.join(cells)} | {seconds:,.0f} | {PAPER[name].acc} |")
        made = sorted({", ".join(run[key] for key in ("device", "software", "commit")) for run in self.runs.values()})
        notes = ["Percent; mean ± standard deviation of the seeds. Seconds of training, pretraining included.", LEGEND]
        return "\n".join([*lines, "", *notes, *made])

    def _by_row(self) -> dict[str, list[Run]]:
        """The finished runs of each row that has any, in the order of the table."""
        found = {row.name: [run for (name, _), run in sorted(self.runs.items()) if name == row.name] for row in ROWS}
        return {name: runs for name, runs in found.items() if runs}


def triple(scores: Mapping[str, float]) -> str:
    """ACC / NMI / ARI in percent."""
    return " / ".join(f"{100 * scores[key]:.1f}" for key in ("acc", "nmi", "ari"))


def commit() -> str:
    """The commit of this working tree, or unknown."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"


if __name__ == "__main__":
    main()
