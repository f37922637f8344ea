"""The GPU benchmark at toy size: cut at any time it leaves all that it has found, and the next call resumes."""

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
PACK = Path(gpu.__file__).with_name("pack_gpu.sh")


class Here(Executor):
    """Calls functions in this process, which has imported PyTorch already."""

    def __init__(self, count: int = 1, kill_on_error: bool = True) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures, each class in a folder of its own."""
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
    """What a call leaves that is killed after the first epoch."""
    folder = tmp_path_factory.mktemp("cut")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, gpu.__file__, *options(folder, archive)], stdout=log, stderr=log)
        while "pretrain" not in found(folder):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        process.kill()
        process.wait()
    return folder


def test_a_killed_call_leaves_all_that_it_has_found(cut: Path) -> None:
    assert list(found(cut)) == [
        *("images", "device", "numerics", "speed, eager", "speed, recorded, compiled, one forward", "kernels, eager"),
        *(name for name in found(cut) if name.startswith("kernels, recorded")),
        *("seconds", "plan", "pretrain"),
    ]
    assert [name for name, value in found(cut).items() if "failed" in value] == []
    assert {row["outcome"] for row in found(cut)["numerics"].values()} == {"passed"}
    assert found(cut)["numerics"]["test_boundary_ratios"]["ratios, of 2"] <= 1e-5
    assert gpu.is_correct(found(cut), "recorded, compiled, one forward")
    assert len(found(cut)["kernels, eager"]["slowest"]) > 10


def test_the_clock_ends_a_call(cut: Path, archive: Path) -> None:
    before = found(cut)
    command = [sys.executable, gpu.__file__, *options(cut, archive, seconds=2)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert "the time is over; run the same command to resume" in ended.stderr
    assert found(cut) == before


def test_stopped_and_killed_calls_are_resumed(cut: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, called = found(cut), gpu.called
    monkeypatch.setattr(gpu, "Workers", Here)

    def stop(name: str, run: gpu.Run, *arguments: str) -> Any:
        if arguments == ("InC",):
            os.kill(os.getpid(), signal.SIGTERM)
        return called(name, run, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(gpu, "called", stop)
        with pytest.raises(SystemExit) as ended:
            gpu.main(options(cut, archive))
    assert ended.value.code == 128 + signal.SIGTERM
    assert {"scores, pretrain", "ConNR"} <= set(found(cut)) >= set(before)
    gpu.main(options(cut, archive))
    after = found(cut)
    assert {name: after[name] for name in before if name != "pretrain"} == {
        name: value for name, value in before.items() if name != "pretrain"
    }
    assert [row["epoch"] for row in after["pretrain"]] == [1, 2, 3, 4]
    assert [row["epoch"] for row in after["ConNR"] + after["InC"]] == [5, 5]
    assert "neighbor_purity" in after["ConNR"][0]
    assert "neighbor_purity" not in after["InC"][0]
    for name in gpu.TRAINED:
        assert after[f"scores, {name}"].keys() == {"kmeans", "graph"}
        features = np.load(cut / f"out/features-{name}-0.npy")
        assert (features.shape, features.dtype) == ((IMAGES, 16), np.float16)


def test_what_fails_is_found_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def called(name: str, run: gpu.Run, *arguments: str) -> dict[str, float]:
        calls.append(name)
        if name == "gpu_cells.numerics":
            raise RuntimeError("no such kernel\nthe trace")
        return {"s": 1.0}

    monkeypatch.setattr(gpu, "called", called)
    run = gpu.Run(tmp_path / "out", tmp_path / "state", tmp_path, time.monotonic() + 60, 0, True)
    for expected in (pytest.raises(gpu.FailedError), pytest.raises(StopIteration)):
        with expected:
            gpu.look(run, Here(), run.deadline, ["numerics", "device"])
            raise StopIteration
    assert calls == ["gpu_cells.numerics", "gpu_cells.device"]
    gpu.look(run, Here(), time.monotonic(), ["kernels, eager"])
    assert run.found.keys() == {"numerics", "device", "seconds"}
    assert run.found["numerics"] == {"failed": "RuntimeError: no such kernel"}


def speeds(images_per_second: float, weights: float, losses: float) -> dict[str, dict[str, float]]:
    bounds = {"weights, constant rate": 0.2, "losses, other views": 0.02}
    row = {"images/s": images_per_second, "weights": weights, "losses": losses, **bounds}
    return dict.fromkeys(gpu.TRAININGS, row)


def test_the_fastest_correct_variant_trains_as_long_as_fits(tmp_path: Path) -> None:
    run = gpu.Run(tmp_path / "out", tmp_path / "state", tmp_path, time.monotonic() + 460, 0, False)
    run.keep("images", {"count": 60_000})
    assert gpu.plan(run)["variant"] == gpu.EAGER
    assert (gpu.plan(run)["pretrain"], gpu.plan(run)["finetune"]) == (48, 12)
    run.keep("speed, eager", speeds(18_000, 0, 0))
    run.keep("speed, recorded", speeds(20_000, 0.09, 0.009))
    run.keep("speed, recorded, compiled", speeds(30_000, 0.11, 0))
    run.keep("speed, recorded, one forward", {"failed": "RuntimeError: …"})
    plan = gpu.plan(run)
    assert (plan["variant"], plan["pretrain"], plan["finetune"]) == ("recorded", 80, 20)
    assert plan["epochs that fit"] == pytest.approx(400 * 0.93 * 20_000 / 60_000 / 1.2, abs=0.2)


def test_features_are_kept_in_parts_the_newest_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cells, "PART", 200)
    monkeypatch.setattr(gpu_cells, "ALL_PARTS", 2000)
    features = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    for name in gpu.TRAINED:
        gpu_cells.keep_features(tmp_path, name, features)
    parts = [np.load(tmp_path / f"features-InC-{number}.npy") for number in range(3)]
    assert max(part.nbytes for part in parts) <= 200
    np.testing.assert_array_equal(np.concatenate(parts), features.astype(np.float16))
    assert {file.name.split("-")[1] for file in tmp_path.iterdir()} == {"ConNR", "InC"}


def test_a_packed_folder_runs_by_itself(tmp_path: Path, archive: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ABSENT": "", "STATE": str(tmp_path / "state")}
    subprocess.run(["bash", PACK, tmp_path / "packed", archive], env=environment, check=True)
    command = ["bash", tmp_path / "packed/run.sh", tmp_path / "out", "3600", "--help"]
    shown = subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "--archive" in shown
    assert (tmp_path / "packed/conr/COMMIT").read_text().strip() == gpu.commit()
