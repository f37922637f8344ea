"""Two clones share a run through a remote of DVC: a folder, or an SSH server on this machine."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from project import run

from conr.data.store import open_store
from conr.pipeline.assign import assign_folder
from conr.pipeline.info import info
from conr.pipeline.project import FILES, TEMPLATE
from conr.pipeline.workspace import Workspace
from conr.stages.cli import STAGES

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
HAS_SSH = SSHD is not None and find_spec("dvc_ssh") is not None
SETTINGS = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
"""
# Several commands in one process: DVC takes longer to load than to run.
DVC = """
import sys
from dvc.cli import main
for command in sys.argv[1:]:
    if main(command.split()):
        sys.exit(f"dvc {command} failed")
"""


def dvc(folder: Path, *commands: str) -> str:
    """Run commands of DVC, none of which may fail, and return what they printed."""
    return run(folder, sys.executable, "-c", DVC, *commands)


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[int]:
    """The port of an SSH server on this machine that lets in whoever has the key beside it."""
    folder = tmp_path / "server"
    folder.mkdir()
    for name in ("host", "key"):
        run(folder, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "settings").write_text(SETTINGS.format(port=port, folder=folder))
    command = [str(SSHD), "-D", "-e", "-f", str(folder / "settings")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = server.stderr.readline()
        try:
            if "Server listening" not in said:
                pytest.skip(f"the SSH server does not start: {said.strip()}")
            yield port
        finally:
            server.terminate()


@pytest.fixture(
    params=[
        pytest.param("ssh", marks=pytest.mark.skipif(not HAS_SSH, reason="needs openssh-server and dvc-ssh")),
        pytest.param("folder", marks=pytest.mark.skipif(HAS_SSH, reason="the same is tested through SSH")),
    ]
)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[str]]:
    """The address of an empty remote; and the commands that give a clone the right to use it."""
    (tmp_path / "shared").mkdir()
    if request.param == "folder":
        return str(tmp_path / "shared"), []
    port = request.getfixturevalue("ssh_server")
    key = f"remote modify --local team keyfile {tmp_path / 'server/key'}"
    return f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path / 'shared'}", [key]


@pytest.fixture
def first(finished: Workspace, remote: tuple[str, list[str]], tmp_path: Path) -> Workspace:
    """A project whose finished run is in git and in the remote."""
    folder = tmp_path / "first"
    shutil.copytree(finished.root, folder)
    for template, name in FILES.items():
        shutil.copy(TEMPLATE / template, folder / name)
    for name in ("images", "backbones"):
        (folder / name).mkdir()
        (folder / name / ".gitkeep").touch()
    run(folder, "git", "init", "--quiet")
    address, access = remote
    dvc(folder, "init --quiet", f"remote add --default team {address}", *access, "commit --force", "push --run-cache")
    run(folder, "git", "add", "--all")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    run(folder, "git", *identity, "commit", "--quiet", "--message", "a run")
    return Workspace.at(folder)


def assigned(workspace: Workspace, images: Path) -> str:
    """The table of new images."""
    table = workspace.root / "new.csv"
    assign_folder(workspace, images, table, device="cpu")
    return table.read_text()


def test_a_second_clone_has_everything_and_computes_nothing(
    first: Workspace, remote: tuple[str, list[str]], tmp_path: Path
) -> None:
    second = Workspace.at(tmp_path / "second")
    run(tmp_path, "git", "clone", "--quiet", str(first.root), str(second.root))
    said = dvc(second.root, *remote[1], "pull --run-cache", "repro")
    assert re.findall(r"Stage '(\w+)' didn't change, skipping", said) == list(STAGES)
    assert "Data and pipelines are up to date." in said
    left, wrong = info(second, verify=True)
    assert [stage.state for stage in left] == ["complete"] * len(STAGES)
    assert wrong == []

    (tmp_path / "new").mkdir()
    for number, pixels in enumerate(open_store(first.store).images[:5]):
        Image.fromarray(pixels).save(tmp_path / f"new/{number}.png")
    expected = assigned(first, tmp_path / "new")
    assert expected.count("\n") == 6, "a line of column names, and one for each image"
    assert assigned(second, tmp_path / "new") == expected

    # The run cache, too: without dvc.lock DVC knows what the first has run.
    (second.root / "dvc.lock").unlink()
    shutil.rmtree(second.root / "artifacts")
    said = dvc(second.root, "repro extract")
    assert re.findall(r"Stage '(\w+)' is cached - skipping run", said) == list(STAGES)[:-1]
    assert assigned(second, tmp_path / "new") == expected
