"""Where trainings run side by side: in processes of this machine, or as tasks of Ray, here or on a cluster.

An executor is like those of `concurrent.futures`: it takes trainings and gives futures. When its block ends with an
exception, all trainings end at once; each resumes from its checkpoint when the same is run again.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from socket import gethostname
from typing import Any

import torch

from conr.embedding.engines.ray_cluster import cluster_address, connected
from conr.embedding.engines.settings import Engine
from conr.errors import UserError, one_line
from conr.pipeline.trainings import Training, train
from conr.processes import Workers, cores
from conr.training.compute import Compute

RETRIES = 3  # of a task whose process or node ended early
ENDING = 10.0  # seconds for tasks that are stopped
SMALLER = "lower pretrain.batch_size, finetune.batch_size or network.width"
FEWER = f"run fewer side by side (--jobs), which resumes after the last saved epoch, or {SMALLER}"


@dataclass(frozen=True)
class Executor:
    """Runs trainings.

    Attributes:
        jobs: how many side by side at most.
        threads: how many all of them share.
        most: threads that one may have.
        submit: (a training, its threads) → a future that ends with it, or with its error.
    """

    jobs: int
    threads: int
    most: int
    submit: Callable[[Training, int], "Future[None]"]

    def share(self, count: int) -> int:
        """The threads of each of so many trainings."""
        return max(1, min(self.most, self.threads // min(self.jobs, count)))


def executor(engine: Engine, jobs: int, device: str) -> AbstractContextManager[Executor]:
    """What runs trainings, until its block ends.

    Args:
        engine: where. Ray on a cluster needs the project under the same path on all nodes.
        jobs: how many side by side; 0 for one per core or, where trainings compute on GPUs, one per GPU.
        device: "cpu", "cuda" or "auto".

    Raises:
        UserError: Ray cannot be used, a training failed, was killed (with Ray, several times), or memory is too small.
    """
    return _local(jobs, device) if engine.name == "local" else _on_ray(engine, jobs, device)


@contextmanager
def _local(jobs: int, device: str) -> Iterator[Executor]:
    on_gpu = Compute.choose(device, "float32").device.type == "cuda"
    jobs, threads = jobs or (1 if on_gpu else cores()), torch.get_num_threads()
    try:
        with Workers(jobs, kill_on_error=True) as pool:
            yield Executor(jobs, threads, threads, lambda *arguments: pool.submit(train, *arguments))
    except BrokenProcessPool as error:
        raise UserError(f"a training was killed, most likely because memory ran out; {FEWER}") from error
    except torch.OutOfMemoryError as error:
        raise _gpu_is_full() from error


@contextmanager
def _on_ray(engine: Engine, jobs: int, device: str) -> Iterator[Executor]:
    address = cluster_address(engine.address)
    with connected(address) as ray:
        cpus, gpus = _resources(ray, device)
        jobs, tasks = jobs or gpus or sum(cpus), []
        shared, most = (sum(cpus), min(cpus)) if address else (torch.get_num_threads(), torch.get_num_threads())

        def submit(training: Training, threads: int) -> "Future[None]":
            own = training.parameters.training
            needs: dict[str, float] = {"num_cpus": min(max(threads, _number(own.threads)), min(cpus))}
            if gpus:
                needs["num_gpus"] = _number(own.processes) if jobs <= gpus else 1 / math.ceil(jobs / gpus)
            tasks.append(ray.remote(max_retries=RETRIES, **needs)(_train_on_node).remote(training, threads))
            future: Future[None] = tasks[-1].future()
            return future

        try:
            yield Executor(jobs, shared, most, submit)
        except ray.exceptions.RayTaskError as error:  # an error of the training itself
            if isinstance(error.cause, torch.OutOfMemoryError):
                raise _gpu_is_full() from error
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray gave up a training ({one_line(error)}); {FEWER}") from error
        finally:
            for task in tasks:
                ray.cancel(task, force=True)  # of one that has ended this does nothing
            if tasks:
                ray.wait(tasks, num_returns=len(tasks), timeout=ENDING)


def _number(asked: int | str) -> int:
    """A number that was asked for; 1 for auto."""
    return asked if isinstance(asked, int) else 1


def _resources(ray: Any, device: str) -> tuple[list[int], int]:
    """The CPUs of each node of Ray that can train, and the GPUs of all; 0 where trainings compute on CPUs.

    Raises:
        UserError: there is none.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not with_gpu:
        raise UserError("device: cuda was asked for, but Ray has no GPU; set device: auto or cpu")
    if not nodes:
        raise UserError("Ray has no CPU to train on; start a node with ray start --num-cpus 1 or more")
    use_gpu = with_gpu and device != "cpu"
    nodes = with_gpu if use_gpu else nodes
    return [int(node["CPU"]) for node in nodes], sum(int(node["GPU"]) for node in with_gpu) if use_gpu else 0


def _train_on_node(training: Training, threads: int) -> None:
    """What a task of Ray does: the training, where relative paths mean the same as here."""
    if not training.packed.store.exists():
        raise UserError(
            f"{training.packed.store} does not exist on the node {gethostname()}; the project must be in a folder that "
            "all nodes of the Ray cluster have under the same path"
        )
    os.chdir(training.packed.root)
    train(training, threads)


def _gpu_is_full() -> UserError:
    return UserError(f"a training does not fit into the GPU's memory; {SMALLER}, or run fewer side by side (--jobs)")
