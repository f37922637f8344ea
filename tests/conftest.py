"""What many tests start from: a tiny run of the digits, made once a session, empty projects, an encoder, a report."""

from collections.abc import Iterator
from pathlib import Path

import faiss
import pytest
import torch
from project import FINISHED, run_stages, tiny, write_params
from report_sample import make_report
from small_encoder import export_in
from together import Peers

from conr.pipeline.workspace import Workspace
from conr.report.page import Report


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Packed digits beside a tiny params.yaml. Not to be written to."""
    workspace = Workspace.at(tmp_path_factory.mktemp("packed"))
    write_params(workspace.root)
    run_stages(workspace, tiny(), "prepare")
    return workspace


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run of all stages with two seeds, beside its params.yaml. Not to be written to."""
    workspace = Workspace.at(tmp_path_factory.mktemp("finished"))
    write_params(workspace.root, FINISHED)
    run_stages(workspace, tiny(FINISHED))
    return workspace


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
    """As many threads as each of several processes side by side has: sums of floats depend on their number."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.fixture(scope="session")
def peers() -> Iterator[Peers]:
    """Processes that can be joined."""
    peers = Peers()
    yield peers
    peers.close()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of a small network, for images of 8 pixels."""
    return export_in(tmp_path_factory.mktemp("cifar"), "cifar", 8)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Everything that a page has to survive."""
    return make_report(tmp_path_factory.mktemp("figures"))
