"""How many trainings run side by side on Ray, and what each reserves; by a Ray that only says what it has."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project import tiny

from conr.embedding.engines.settings import Engine
from conr.errors import UserError
from conr.pipeline import executors
from conr.pipeline.executors import executor
from conr.pipeline.trainings import Training
from conr.pipeline.workspace import Workspace

HEAD, CPUS, GPUS = {"memory": 1e9}, {"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}


class NoRay:
    """A Ray that runs nothing."""

    def __init__(self, nodes: list[dict[str, float]]) -> None:
        self.resources, self.reserved = nodes, list[dict[str, float]]()
        self.exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ArithmeticError)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.resources] + [{"Alive": False, "Resources": CPUS}]

    def remote(self, max_retries: int, **needs: float) -> Any:
        self.reserved.append(needs)
        task = SimpleNamespace(remote=lambda *_: SimpleNamespace(future=Future[None]))
        return lambda function: task

    def cancel(self, task: object, force: bool) -> None:
        pass

    def wait(self, tasks: list[object], num_returns: int, timeout: float) -> None:
        pass


def use(ray: NoRay, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def connected(address: str | None) -> Iterator[NoRay]:
        yield ray

    monkeypatch.setattr(executors, "connected", connected)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("nodes", "address", "asked", "changes", "jobs", "reserved"),
    [
        ([CPUS], None, 0, {}, 16, {"num_cpus": 1}),  # six trainings share this process's eight threads
        ([CPUS], None, 2, {}, 2, {"num_cpus": 4}),
        ([HEAD, CPUS, GPUS], "auto", 0, {"device": "cpu"}, 48, {"num_cpus": 8}),
        ([HEAD, CPUS, GPUS], "auto", 2, {"device": "cpu"}, 2, {"num_cpus": 16}),  # as the smallest node has
        ([HEAD, CPUS, GPUS], "auto", 0, {"device": "cpu", "training.threads": 12}, 48, {"num_cpus": 12}),
        ([CPUS, GPUS, GPUS], "auto", 0, {"device": "auto"}, 8, {"num_cpus": 10, "num_gpus": 1}),
        ([CPUS, GPUS], "auto", 2, {"device": "auto", "training.processes": 2}, 2, {"num_cpus": 16, "num_gpus": 2}),
        ([CPUS, GPUS], "auto", 6, {"device": "auto"}, 6, {"num_cpus": 5, "num_gpus": 0.5}),
    ],
)
def test_trainings_reserve_what_they_use_of_ray(
    nodes: list[dict[str, float]],
    address: str | None,
    asked: int,
    changes: dict[str, Any],
    jobs: int,
    reserved: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = NoRay(nodes)
    use(ray, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    parameters = tiny(changes)
    own = parameters.changed({"training.processes": 1}) if parameters.training.processes == "auto" else parameters
    training = Training("pretrain", "a row", own, Workspace(), Workspace.at(Path("own")))
    with executor(Engine("ray", address), asked, parameters.device) as pool:
        pool.submit(training, pool.share(6))
    assert pool.jobs == jobs
    assert ray.reserved == [reserved]


@pytest.mark.parametrize(
    ("nodes", "device", "message"),
    [
        ([CPUS], "cuda", "device: cuda was asked for, but Ray has no GPU"),
        ([HEAD], "auto", "Ray has no CPU to train on"),
    ],
)
def test_a_ray_that_cannot_train_is_refused(
    nodes: list[dict[str, float]], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(NoRay(nodes), monkeypatch)
    with pytest.raises(UserError, match=message), executor(Engine("ray", "auto"), 0, device):
        pass
