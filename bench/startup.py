"""Start-up: conr --help, conr finetune --help, and a dvc repro that has nothing to do.

    make bench-startup      # about a minute on two CPU cores

Medians of runs that alternate; the interpreter alone beside them. The pipeline is that of this repository in a
temporary clone, run once with tiny parameters.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPEATS = 9
ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "network": {"width": 4, "hidden": 32, "dimension": 16},
    "pretrain": {"epochs": 1},
    "finetune": {"epochs": 1},
    "evaluate": {"restarts": 1, "gallery": 4},
}
COMMANDS = (("python", "-c", "pass"), ("conr", "--help"), ("conr", "finetune", "--help"), ("dvc", "repro"))


def main() -> None:
    """Run the pipeline in a clone, then time the commands there."""
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary, "conr")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        params = yaml.safe_load((clone / "params.yaml").read_text())
        for group, changes in TINY.items():
            params[group] |= changes
        (clone / "params.yaml").write_text(yaml.safe_dump(params))
        # The tools beside this interpreter, and the code in the clone.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        os.environ |= {"PATH": path, "PYTHONPATH": str(clone)}
        run(clone, "dvc", "repro")
        found = {command: [] for command in COMMANDS}
        for _ in range(REPEATS):
            for command, runs in found.items():
                runs.append(run(clone, *command))
    print("| | wall, s | CPU, s |\n|---|---|---|")
    for command, runs in found.items():
        wall, processor = (statistics.median(times) for times in zip(*runs, strict=True))
        print(f"| {' '.join(command)} | {wall:.2f} | {processor:.2f} |")


def run(folder: Path, *command: str) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, that a command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
