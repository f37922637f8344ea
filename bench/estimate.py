"""conr estimate against what the digits preset really takes, from the command to its end.

    make bench-estimate      # about five minutes on two CPU cores

Estimates are made before, between and after the two stages, and their median counts; what is estimated is
`conr pretrain` and `conr finetune` as a user runs them, start-up included. Seconds per epoch are those between two rows
of the log, so they lack the checkpoint that the estimate counts.
"""

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from common import Turns, head, line, parser, run

from conr import Workspace
from conr.pipeline.estimate import estimate
from conr.pipeline.params_file import read
from conr.pipeline.presets import write
from conr.training.log import read_log


def main() -> None:
    parser(__doc__).parse_args()
    with TemporaryDirectory() as folder:
        workspace, file = Workspace.at(Path(folder)), Path(folder, "params.yaml")
        write("digits", file)
        parameters = read(file)
        run("prepare", workspace, parameters)
        logs = {"pretrain": workspace.pretrained.log, "finetune": workspace.finetuned(parameters.seed).log}
        estimates, commands = Turns(), Turns()
        for stage in (*logs, None):
            estimates.measure(partial(estimate, workspace, parameters))
            if stage is not None:
                command = [Path(sys.executable).with_name("conr"), stage]
                commands.measure(partial(subprocess.run, command, cwd=folder, check=True, stdout=subprocess.DEVNULL))
        print(f"an estimate took {estimates.seconds:.0f} s\n")
        print(head("", "estimated, s", "actual, s", "ratio", "s per epoch, estimated", "in the log"))
        for (stage, log), actual in zip(logs.items(), commands.wall, strict=True):
            costs = [found[stage] for found in estimates.results]
            seconds = [cost.seconds for cost in costs]
            middle, epoch = statistics.median(seconds), statistics.median(cost.epoch_seconds for cost in costs)
            logged = statistics.mean(row["seconds"] for row in read_log(log))
            estimated = f"{middle:.0f} ({min(seconds):.0f}-{max(seconds):.0f})"
            print(line(stage, estimated, f"{actual:.0f}", f"{middle / actual:.2f}", f"{epoch:.2f}", f"{logged:.2f}"))


if __name__ == "__main__":
    main()
