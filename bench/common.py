"""What the benchmarks share: arguments, tables, timing in turns, processes, stages, checkouts.

PyTorch is imported where it is used: the processes of prepare.py import this file.
"""

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from operator import getitem
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from conr import Parameters, Workspace
from conr.processes import Workers

ROOT = Path(__file__).resolve().parents[1]
TRAININGS = ("pretrain", "finetune")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the description of a script."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def head(*names: object) -> str:
    """The first two lines of a Markdown table."""
    return f"{line(*names)}\n|{'---|' * len(names)}"


def line(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


@dataclass(frozen=True)
class Turns:
    """What a call took and returned, turn by turn."""

    wall: list[float] = field(default_factory=list)  # seconds on the clock
    processor: list[float] = field(default_factory=list)  # those of processes that the call waited for included
    results: list[Any] = field(default_factory=list)

    def measure(self, call: Callable[[], Any]) -> Any:
        """Add a turn; returns what the call does."""
        processor, started = _processor(), time.perf_counter()
        self.results.append(call())
        self.wall.append(time.perf_counter() - started)
        self.processor.append(_processor() - processor)
        return self.results[-1]

    @property
    def seconds(self) -> float:
        """The median on the clock."""
        return statistics.median(self.wall)


def _processor() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def in_turns(calls: Mapping[str, Callable[[], Any]], turns: int, warm_up: int = 0) -> dict[str, Turns]:
    """Make calls in turns, after some that do not count: a change of the machine's load meets all of them."""
    found = {name: Turns() for name in calls}
    for number in range(warm_up + turns):
        for name, call in calls.items():
            (found[name] if number >= warm_up else Turns()).measure(call)
    return found


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a script returns, called in a fresh process, whose memory and threads are its own."""
    with Workers(1, _set_start_method, (multiprocessing.get_start_method(),)) as pool:
        return pool.submit(function, *arguments).result()


def _set_start_method(name: str) -> None:
    """Start further processes as a script does: the default in a process that was spawned is to spawn."""
    multiprocessing.set_start_method(name, force=True)


def run(stage: str, workspace: Workspace, parameters: Parameters, *others: Any) -> Any:
    """Run the body of a stage, with further arguments of its own; returns what it returns."""
    return getattr(import_module(f"conr.pipeline.{stage}"), stage)(workspace, parameters, *others)


def checkout(commit: str, folder: Path) -> None:
    """A commit of this repository in a new folder, which PYTHONPATH can name instead of the installed package."""
    for command in (["clone", "-q", ROOT, folder], ["-C", folder, "checkout", "-q", commit]):
        subprocess.run(["git", *command], check=True)
    if (folder / "conr/pipeline").is_dir():
        (folder / "conr/stages").symlink_to("../stages")  # as the installed package has it


def set_values(path: Path, changes: Mapping[str, Any]) -> None:
    """Change a YAML file by dotted key."""
    yaml = YAML()
    content = yaml.load(path)
    for key, value in changes.items():
        *groups, name = key.split(".")
        reduce(getitem, groups, content)[name] = value
    yaml.dump(content, path)
