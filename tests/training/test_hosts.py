"""Two hosts, which are two network namespaces of this one, train together."""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import SmallEncoder, Unsaved, patterned, small_spec
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from conr.observer import SILENT, Observer
from conr.parameters import PretrainStage
from conr.parameters.groups import Optimizer, Pretrain
from conr.training import weights
from conr.training.launcher import choose_processes, train_together, under_torchrun
from conr.training.pretraining import pretrain

CLONE_NEWNET = 0x40000000
BATCH, PORT = 8, 29400
NAMES = [f"conr-{os.getpid()}-{rank}" for rank in range(2)]
ADDRESSES, INTERFACE = ["10.77.1.1", "10.77.1.2"], "inside"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """The names of two network namespaces that a virtual cable connects."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("only root can make network namespaces, with ip")
    try:
        try:
            for name in NAMES:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made: {error.stderr.decode().strip()}")
        first, second = NAMES
        ip("link", "add", INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                ip("-n", name, "link", "set", interface, "up")
        yield NAMES
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def training(observer: Observer) -> dict[str, Tensor]:
    """The weights after four steps."""
    settings = Pretrain(epochs=2, batch_size=BATCH)
    optimizer = Optimizer(warmup_epochs=0, schedule_epochs=2)
    parameters = PretrainStage(device="cpu", precision="float32", optimizer=optimizer, pretrain=settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "Encoder", SmallEncoder)
        model = small_spec().build(seed=0).double()
        pretrain(model, patterned(np.arange(2 * BATCH) % 4), None, parameters, Unsaved(), observer)
    return model.state_dict()


def command(folder: Path) -> str:
    """Two trainings, one after the other."""
    processes = choose_processes("auto", torch.device("cpu"), "pretrain", BATCH, 0)
    for number in range(2):
        torch.save(train_together(training, processes, SILENT), folder / f"weights {number}.pt")
    return f"{processes} processes"


def work(folder: Path) -> str:
    torch.set_num_threads(1)
    return under_torchrun(command)(folder)


def host(name: str, rank: int, folder: Path) -> None:
    """What torchrun does on a host."""
    with Path("/run/netns", name).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.environ |= {"GLOO_SOCKET_IFNAME": INTERFACE, "RES_OPTIONS": "timeout:1 attempts:1"}  # no name server is there
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        run_id="together",
        rdzv_backend="static",
        rdzv_endpoint=f"{ADDRESSES[0]}:{PORT}",
        rdzv_configs={"rank": rank, "timeout": 60},
        local_addr=ADDRESSES[rank],
        start_method="fork",  # for speed: of a process that has imported everything, and that has no threads yet
        max_restarts=0,
    )
    said = elastic_launch(config, work)(folder)
    (folder / f"host {rank}").write_text(" ".join(said.values()))


@pytest.mark.usefixtures("one_thread", "peers")
def test_two_hosts_end_with_the_weights_of_one_process(namespaces: list[str], tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    hosts = [context.Process(target=host, args=(name, rank, tmp_path)) for rank, name in enumerate(namespaces)]
    for process in hosts:
        process.start()
    for process in hosts:
        process.join(timeout=60)
        process.kill()
    said = [(tmp_path / f"host {rank}").read_text() for rank in range(2)]
    assert said == ["2 processes", "process 1 of 2 has trained what process 0 tells of"]
    expected = train_together(training, 1, SILENT)
    for number in range(2):
        found = torch.load(tmp_path / f"weights {number}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
