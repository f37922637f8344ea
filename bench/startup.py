"""Start-up: conr --help, conr finetune --help, and a dvc repro that has nothing to do.

    make bench-startup      # about a minute on two CPU cores

Medians of runs in turns; plain Python for comparison. The pipeline is that of this repository's last commit in a
temporary clone, run once with tiny parameters.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from common import checkout, head, in_turns, line, parser, set_values

from conr.pipeline.params_file import assignments

TINY = """network.width=4 network.hidden=32 network.dimension=16 pretrain.epochs=1 finetune.epochs=1
evaluate.n_init=1 evaluate.gallery=4"""
COMMANDS = ("python -c pass", "conr --help", "conr finetune --help", "dvc repro")


def main() -> None:
    parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary, "conr")
        checkout("HEAD", clone)
        set_values(clone / "params.yaml", assignments(TINY.split()))
        # The tools beside this interpreter, and the code in the clone.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(clone)}
        options = {"cwd": clone, "env": environment, "check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(["dvc", "repro"], **options)
        found = in_turns({name: partial(subprocess.run, name.split(), **options) for name in COMMANDS}, turns=9)
    print(head("", "wall, s", "CPU, s"))
    for name, turns in found.items():
        print(line(name, f"{turns.seconds:.2f}", f"{statistics.median(turns.processor):.2f}"))


if __name__ == "__main__":
    main()
