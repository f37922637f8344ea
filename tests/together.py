"""Some processes that call a function at the same time, joined by gloo."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

LARGEST = 3  # processes
PATIENCE = timedelta(seconds=60)


def _as_one(rank: int, size: int, store: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=PATIENCE)
    try:
        return function(*arguments)
    finally:
        dist.destroy_process_group()


class Peers:
    """The processes, which are started once: each has to import PyTorch."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["conr.refinement.objective", "conr.training.launcher", "pytest"])
        forkserver.ensure_running()  # now, while nothing holds signals back, which all processes would inherit
        self._pool = ProcessPoolExecutor(LARGEST, context)

    def call(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a function of a module returns in each of the processes, by rank."""
        with TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            futures = [self._pool.submit(_as_one, rank, size, store, function, arguments) for rank in range(size)]
            return [future.result() for future in futures]

    def close(self) -> None:
        """End them."""
        self._pool.shutdown(cancel_futures=True)
