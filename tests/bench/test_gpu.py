"""The GPU benchmark at toy size: cut at any time it leaves all it has found, and the next call resumes."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import gpu
import gpu_cells
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.bench

IMAGES = 120


class Here(Executor):
    """Calls functions in this process."""

    def __init__(self, count: int, kill_on_error: bool) -> None:
        assert count == 1

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures of ten shades, in two folders of ten classes."""
    path = tmp_path_factory.mktemp("archive") / "images.tar.gz"
    random = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for number in range(IMAGES):
            pixels = random.integers(0, 60, (16, 16, 3)) + np.array([18 * (number % 10), 90, 60 * (number % 3)])
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
            info = tarfile.TarInfo(f"images/{'test' if number % 6 else 'train'}/{number % 10}/{number}.jpg")
            info.size = buffer.tell()
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    return path


def options(folder: Path, archive: Path, seconds: float = 3600) -> list[str]:
    places = [f"--{name}={folder / name}" for name in ("out", "state")]
    return ["--toy", f"--archive={archive}", f"--seconds={seconds}", *places]


def found(folder: Path) -> dict[str, Any]:
    file = folder / "out/gpu.json"
    return json.loads(file.read_text()) if file.exists() else {}


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """What a run leaves that is killed after the first epoch."""
    folder = tmp_path_factory.mktemp("cut")
    with (folder / "log").open("w") as log:
        command = [sys.executable, gpu.__file__, *options(folder, archive)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while "pretrain" not in found(folder):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        process.kill()
        process.wait()
    return folder


def test_all_is_found_and_resumed_after_a_kill(cut: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found(cut)
    assert [name for name, value in before.items() if "failed" in value] == []
    assert {"device", "numerics", "speed, eager", "kernels, eager", "images", "plan"} <= set(before)
    assert {row["outcome"] for row in before["numerics"].values()} == {"passed"}
    monkeypatch.setattr(gpu, "Workers", Here)
    gpu.main(options(cut, archive))
    after = found(cut)
    assert {name: after[name] for name in before if name != "pretrain"} == {
        name: value for name, value in before.items() if name != "pretrain"
    }
    epochs = {"pretrain": after["plan"]["pretrain"], **dict.fromkeys(("ConNR", "InC"), after["plan"]["finetune"])}
    for name, count in epochs.items():
        assert [row["epoch"] for row in after[name]][-count:] == [row["epoch"] for row in after[name]]
        assert after[f"scores, {name}"].keys() == {"kmeans", "graph"}
        features = np.load(cut / f"out/features-{name}-0.npy")
        assert features.shape == (IMAGES, 16)
        assert features.dtype == np.float16
    assert "neighbor_purity" in after["ConNR"][0]
    assert "neighbor_purity" not in after["InC"][0]
