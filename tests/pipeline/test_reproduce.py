"""What DVC's locks of killed processes do to the next run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from project import run

from conr.pipeline.reproduce import release_locks_of_the_dead, reproduce


def locks(file: Path, *, reader: int | None = None, writer: int | None = None) -> Path:
    """DVC's file, as the processes of these numbers leave it."""
    read = {} if reader is None else {"data": [{"pid": reader, "cmd": "dvc"}]}
    write = {} if writer is None else {"out": {"pid": writer, "cmd": "dvc"}}
    file.write_text(json.dumps({"read": read, "write": write}))
    return file


@pytest.fixture
def unwaited() -> int:
    """The number of a process that has ended, and whose parent has not waited for it."""
    process = psutil.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout.read() == b""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process.status() == psutil.STATUS_ZOMBIE
    return int(process.pid)


def test_a_process_that_nobody_waits_for_holds_no_lock(tmp_path: Path, unwaited: int) -> None:
    run(tmp_path, "dvc", "init", "--no-scm", "--quiet")
    (tmp_path / "dvc.yaml").write_text("stages: {copy: {cmd: echo 1 > out, outs: [out]}}")
    locks(tmp_path / ".dvc/tmp/rwlock", writer=unwaited)
    assert reproduce(tmp_path) == 0
    assert (tmp_path / "out").read_text() == "1\n"


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_a_later_process_of_the_same_number_holds_no_lock(tmp_path: Path, role: str) -> None:
    file = locks(tmp_path / "rwlock", **{role: os.getpid()})
    before = psutil.Process().create_time() - 60
    os.utime(file, (before, before))
    release_locks_of_the_dead(file)
    assert not file.exists()


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_a_living_process_keeps_its_locks(tmp_path: Path, role: str) -> None:
    file = locks(tmp_path / "rwlock", **{role: os.getpid()})
    release_locks_of_the_dead(file)
    assert file.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"read": {"data": [{}]}}', '{"read": [], "write": {"out": 3}}'])
def test_a_file_that_a_killed_process_has_begun_is_deleted(tmp_path: Path, text: str) -> None:
    (tmp_path / "rwlock").write_text(text)
    release_locks_of_the_dead(tmp_path / "rwlock")
    assert not (tmp_path / "rwlock").exists()


def test_without_locks_there_is_nothing_to_do(tmp_path: Path) -> None:
    release_locks_of_the_dead(tmp_path / "rwlock")
    assert not any(tmp_path.iterdir())
