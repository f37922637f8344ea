"""What many tests start from: a tiny run of the digits, made once a session, empty projects, an encoder, a report."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import pytest
import torch
from filelock import FileLock
from project import FINISHED, run_stages, tiny, write_params
from report_sample import make_report
from small_encoder import export_in
from together import Peers

from conr.pipeline.workspace import Workspace
from conr.report.page import Report

os.environ["DVC_NO_ANALYTICS"] = "1"  # each of its commands would start a process that reports it


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process of a session makes, for the others beside it, too. Not to be written to."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, made = base / name, base / f"{name}.made"
    with FileLock(base / f"{name}.lock"):
        if not made.exists():
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@contextmanager
def a_thread() -> Iterator[None]:
    """One thread, which each of several processes side by side has: sums of floats depend on their number."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Packed digits beside a tiny params.yaml. Not to be written to."""
    workspace = Workspace.at(tmp_path_factory.mktemp("packed"))
    write_params(workspace.root)
    run_stages(workspace, tiny(), "prepare")
    return workspace


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run of all stages with two seeds and one thread, beside its params.yaml. Not to be written to."""

    def make(folder: Path) -> None:
        write_params(folder, FINISHED)
        with a_thread():
            run_stages(Workspace.at(folder), tiny(FINISHED))

    return Workspace.at(made_once(tmp_path_factory, "finished", make))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a tiny params.yaml."""
    write_params(tmp_path)
    return tmp_path


@pytest.fixture
def workspace(packed: Workspace, tmp_path: Path) -> Workspace:
    """The packed digits, and nothing else."""
    workspace = Workspace.at(tmp_path)
    workspace.borrow(packed, "artifacts/store")
    return workspace


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The only one of the test."""
    with a_thread():
        yield


@pytest.fixture(scope="session")
def peers() -> Iterator[Peers]:
    """Processes that can be joined."""
    peers = Peers()
    yield peers
    peers.close()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of a small network, for images of 8 pixels."""
    folder = made_once(tmp_path_factory, "cifar", lambda folder: export_in(folder, "cifar", 8))
    return folder / "sub" / "encoder.onnx"


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Everything that a page has to survive."""
    return make_report(tmp_path_factory.mktemp("figures"))
