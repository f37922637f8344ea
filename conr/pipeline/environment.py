"""environment: what a bug report says of versions, machine, threads and paths.

Each fact is asked for by itself. One that cannot be had, such as the devices where torch cannot be imported, becomes a
text that says why.
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import conr
from conr.errors import one_line
from conr.pipeline.workspace import Workspace
from conr.processes import cores, machine_memory, processor

PACKAGES = ("torch", "torchvision", "onnxruntime", "faiss-cpu", "scikit-learn", "numpy", "dvc")
OTHERS = ("onnxruntime-gpu", "openvino", "faiss-gpu", "ray", "dvc-ssh", "dvc-s3")  # named where they are installed
ABSENT = "not installed"
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time in a period, and the period


def environment(workspace: Workspace) -> dict[str, dict[str, str]]:
    """Section → name → fact, as text. No fact raises, and ~ stands for the home folder.

    Args:
        workspace: the project that one is in, or any folder; it is not read.
    """
    sections: dict[str, dict[str, Callable[[], str]]] = {
        "versions": {
            "conr": lambda: conr.__version__,
            "commit": _commit,
            "Python": platform.python_version,
            **{name: partial(_version, name) for name in (*PACKAGES, *OTHERS)},
        },
        "machine": {
            "system": platform.platform,
            "processor": processor,
            "memory": lambda: f"{machine_memory() / 2**30:.1f} GiB",
            "devices": _devices,
            "onnxruntime": _providers,
        },
        "threads": {
            "cores": lambda: f"{cores()} of {os.cpu_count()}",
            "CPU quota": _quota,
            "OMP_NUM_THREADS": lambda: os.environ.get("OMP_NUM_THREADS", "not set"),
            "torch": _threads,
        },
        "paths": {
            "project": lambda: str(workspace.root.absolute()),
            "scratch": lambda: str(workspace.scratch.absolute()),
            "DVC cache": _cache,
            "conr": lambda: str(Path(conr.__file__).parent),
            "Python": lambda: sys.executable,
            "temporary": tempfile.gettempdir,
        },
    }
    facts = {section: {name: _asked(fact) for name, fact in part.items()} for section, part in sections.items()}
    for name in OTHERS:
        if facts["versions"][name] == ABSENT:
            del facts["versions"][name]
    return facts


def without_home(text: str) -> str:
    """A text in which ~ stands for the home folder, whose name may be a person's."""
    home = os.path.expanduser("~")  # noqa: PTH111  # Path.home raises where there is none
    return text if home in ("~", "/") else re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)


def _asked(fact: Callable[[], str]) -> str:
    """A fact, or why it cannot be had."""
    try:
        return without_home(fact())
    except Exception as error:  # of any class: a damaged library raises what it likes
        return without_home(f"unknown ({type(error).__name__}: {one_line(error)})")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ABSENT


def _commit() -> str:
    """Of the clone that conr runs from."""
    clone = Path(conr.__file__).parents[1]
    if not (clone / ".git").exists():
        return "none (no clone)"
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _devices() -> str:
    """All devices that torch can compute on."""
    import torch

    found = [f"cpu ({torch.backends.cpu.get_cpu_capability()})"]
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        memory = f"{card.total_memory / 2**30:.0f} GiB"
        found.append(f"cuda:{number} ({card.name}, {memory}, compute capability {card.major}.{card.minor})")
    return f"{', '.join(found)}; torch is built for CUDA {torch.version.cuda}"


def _providers() -> str:
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())


def _quota() -> str:
    """How many cores a container may keep busy, which is not what the number of cores says there."""
    quota, period = CPU_QUOTA.read_text().split() if CPU_QUOTA.is_file() else ("max", "")
    return "none" if quota == "max" else f"{int(quota) / int(period):g} cores"


def _threads() -> str:
    import torch

    return str(torch.get_num_threads())


def _cache() -> str:
    from dvc.repo import Repo

    with Repo() as repo:
        return str(repo.cache.local.path)
