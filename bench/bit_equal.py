"""Whether two versions of the code compute the same, to the last bit: the digits preset with a commit's code and this.

    make bench-bit-equal ARGS='--commit b0891fa'      # seeds 0-4, about half an hour on two CPU cores
    python bench/bit_equal.py --commit b0891fa --seeds 0 --set pretrain.epochs=2 --set finetune.epochs=2

Each run has one thread of its own on the CPU: threads decide the order of sums. For each seed it prints how many
tensors of the weights differ after both stages, by how much at most, and how many images are in another cluster.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from common import ROOT, TRAININGS, checkout, head, line, parser, set_values
from safetensors.torch import load_file

from conr.files import load_table
from conr.parameters import STAGES
from conr.pipeline.params_file import assignments


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--commit", required=True, help="what to compare this working tree with")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    flags.add_argument("--jobs", type=int, default=2, help="runs side by side")
    flags.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value for a key")
    given = flags.parse_args()
    changes = assignments(given.set)
    with TemporaryDirectory() as temporary:
        there, here = Path(temporary, "there"), Path(temporary, "here")
        checkout(given.commit, there)
        for name in ("conr", "stages"):  # copied, so that the working tree may change meanwhile
            shutil.copytree(ROOT / name, here / name)
        (here / "conr/stages").symlink_to("../stages")
        with ThreadPoolExecutor(given.jobs) as pool:
            runs = [pool.submit(run, code, seed, changes) for code in (there, here) for seed in given.seeds]
        for finished in runs:
            finished.result()
        stages = [f"tensors that differ after {stage} (largest difference)" for stage in TRAININGS]
        print(head("seed", *stages, "images in another cluster"))
        for seed in given.seeds:
            pair = there / f"runs/{seed}", here / f"runs/{seed}"
            print(line(seed, *(weights(stage, *pair) for stage in TRAININGS), clusters(*pair)))


def run(code: Path, seed: int, changes: Mapping[str, object]) -> None:
    """Run all stages of the digits preset with some code, before or after stages/ became part of the package."""
    packaged, folder = (code / "conr/stages").exists(), code / f"runs/{seed}"
    folder.mkdir(parents=True)
    shutil.copy(code / ("conr/presets" if packaged else "presets") / "digits.yaml", folder / "params.yaml")
    set_values(folder / "params.yaml", {**changes, "device": "cpu", "seed": seed})
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    for stage in STAGES:
        command = f"from {'conr.' * packaged}stages.cli import main; main()"
        program = f"import sys; sys.argv = ['conr', '{stage}']; {command}"
        subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True, stdout=sys.stderr)


def weights(stage: str, first: Path, second: Path) -> str:
    """How two weights files of a stage differ."""
    files = (next((folder / "artifacts" / stage).rglob("*.safetensors")) for folder in (first, second))
    ours, theirs = map(load_file, files)
    missing = ours.keys() ^ theirs.keys()
    both = [(ours[name], theirs[name]) for name in ours if name in theirs]
    largest = [float((one.double() - other.double()).abs().max()) for one, other in both if not one.equal(other)]
    absent = f", {len(missing)} are in one only" if missing else ""
    return f"{len(largest)} of {len(both)} ({max(largest, default=0):.2g}){absent}"


def clusters(first: Path, second: Path) -> str:
    """How many rows of two tables of assignments name another cluster."""
    tables = [load_table(folder / "results/assignments.csv", "run it again") for folder in (first, second)]
    differ = sum(one["cluster"] != other["cluster"] for one, other in zip(*tables, strict=True))
    return f"{differ:,} of {len(tables[0]):,}"


if __name__ == "__main__":
    main()
