"""conr estimate against what the digits preset really takes, from the command to its end.

    make bench-estimate      # about five minutes on two CPU cores

Estimates stand before, between and after the two stages, and their median counts; what is estimated is `conr pretrain`
and `conr finetune` as a user runs them, start-up included. Seconds an epoch are those between two rows of the log, so
they lack the checkpoint that the estimate counts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rows import ROOT

from conr.progress import silent
from conr.training.log import read_log
from stages import params_file
from stages.estimate import try_both
from stages.paths import FINETUNE_LOG, PRETRAIN_LOG

LOGS = {"pretrain": PRETRAIN_LOG, "finetune": FINETUNE_LOG}


def main() -> None:
    """Estimate, train, and print both."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("params.yaml").write_bytes((ROOT / "presets/digits.yaml").read_bytes())
        params = params_file.validated(params_file.read())
        command("prepare")
        estimates, took, actual = [], [], {}
        for stage in (*LOGS, None):
            started = time.perf_counter()
            estimates.append(try_both(params, silent))
            took.append(time.perf_counter() - started)
            if stage is not None:
                actual[stage] = command(stage)
        print(f"an estimate took {statistics.median(took):.0f} s\n")
        print("| | estimated, s | actual, s | ratio | s an epoch, estimated | in the log |")
        print("|---|---|---|---|---|---|")
        for stage, log in LOGS.items():
            costs = [estimate[stage].cost for estimate in estimates]
            spread = f"{min(cost.seconds for cost in costs):.0f}-{max(cost.seconds for cost in costs):.0f}"
            seconds = statistics.median(cost.seconds for cost in costs)
            epoch = statistics.median(cost.epoch_seconds for cost in costs)
            logged = statistics.mean(row["seconds"] for row in read_log(log))
            print(
                f"| {stage} | {seconds:.0f} ({spread}) | {actual[stage]:.0f} | {seconds / actual[stage]:.2f} "
                f"| {epoch:.2f} | {logged:.2f} |"
            )
        os.chdir(ROOT)


def command(stage: str) -> float:
    """Run a stage's command; returns its seconds."""
    started = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("conr"), stage], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
