"""conr estimate: its table, its sums and warnings, that it leaves nothing behind, and that it is right."""

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import faiss
import pytest
import torch
from project import ROOT, run_conr, write_params

from conr.data.store import open_store
from conr.parameters import FinetuneStage, ParamsFile, PretrainStage
from conr.progress import silent
from conr.training import estimate as measurement
from conr.training.checkpoints import Checkpoint
from conr.training.estimate import Cost, Measurement
from conr.training.group import finetune
from conr.training.instance import pretrain
from stages import params_file
from stages.estimate import Trial, duration, report, size, try_out
from stages.params_file import changed, view_of
from stages.paths import STORE
from stages.pretrain import fresh_model

WIDE = {"network": {"width": 8, "hidden": 64, "dimension": 32}}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with packed digits and a small network."""
    folder = tmp_path_factory.mktemp("packed")
    write_params(folder, WIDE)
    assert run_conr(folder, "prepare").returncode == 0
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two processes with as many threads as cores each would wait for each other, now and then for seconds."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def cells(output: str, row: str) -> list[str]:
    """The cells of a row of the table."""
    line = next(line for line in output.splitlines() if line.startswith(f"{row} "))
    return re.split(r"\s{2,}", line.strip())


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_table_says_what_training_takes_and_nothing_is_left_behind(packed: Path) -> None:
    before = contents(packed)
    result = run_conr(packed, "estimate", "-S", "pretrain.epochs=5", "--set", "seeds=[3, 4]")
    assert result.returncode == 0, result.stderr
    assert contents(packed) == before
    stage, images, steps, *_, epochs, _, memory = cells(result.stdout, "pretrain")
    assert (stage, images, steps, epochs) == ("pretrain", "1,797", "14", "5")
    assert memory.endswith("B")
    stage, images, steps, *_, epochs, _, _ = cells(result.stdout, "finetune")
    assert (stage, images, steps, epochs) == ("finetune", "1,797", "7", "2 × 2")
    assert "for one pretraining and 2 seeds of finetune, on the CPU" in result.stdout


ENDLESS = """
import signal
from conr.progress import silent
from stages import cli, estimate, params_file

def endless(*arguments):
    print("trying", flush=True)
    signal.pause()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in a shell's background
    signal.signal(signal.SIGTERM, cli._terminate)
    estimate.try_out = endless
    estimate.try_both(params_file.validated(params_file.read()), silent)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_estimate_ends_at_once_and_leaves_no_process(
    packed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    shutil.copy(packed / "params.yaml", tmp_path)
    (tmp_path / "artifacts").symlink_to(packed / "artifacts")
    environment = {**os.environ, "DVC_ROOT": str(tmp_path)}
    command = [sys.executable, "endless.py"]
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == b"trying\n"
        parent.send_signal(number)
        parent.communicate(timeout=60)  # the pipe closes when the last process that holds it has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    assert parent.returncode not in (0, None)
    if number != signal.SIGKILL:
        assert list((tmp_path / ".conr").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pretrain.epoch=3"], "unknown key pretrain.epoch; did you mean pretrain.epochs?"),
        (["k1"], "--set k1 should be KEY=VALUE"),
        (["k1=[1"], "[1 is not valid YAML"),
        (["k1=9", "prepare.image_size=16"], "--set prepare.image_size: the images are timed as they are packed"),
        (["k1=300"], "k1 = 300 is larger than finetune.batch_size = 256"),
        (["fr=2"], "fr = 2 should be less than or equal to 1"),
        (["pretrain.batch_size=1798"], "pretrain.batch_size = 1798 is larger than the number of images"),
    ],
)
def test_settings_pass_the_checks_of_the_file(settings: list[str], message: str, packed: Path) -> None:
    result = run_conr(packed, "estimate", *(part for text in settings for part in ("--set", text)))
    assert result.returncode == 2
    assert message in result.stderr


def test_without_a_store_it_says_what_to_run(project: Path) -> None:
    result = run_conr(project, "estimate")
    assert result.returncode == 2
    assert "artifacts/store does not exist; run conr prepare first" in result.stderr
    assert not (project / ".conr").exists()


def convolution(inputs: int, outputs: int, kernel: int, size: int) -> float:
    """Operations of a convolution of one image to (outputs, size, size)."""
    return 2.0 * inputs * outputs * kernel**2 * size**2


def forward_by_hand(width: int, size: int) -> float:
    """Operations of a ResNet-18 with the stem for small images, behind its stem, forth, for one image."""
    total = 4 * convolution(width, width, 3, size)
    for _ in range(3):
        size = (size + 1) // 2
        total += convolution(width, 2 * width, 3, size) + 3 * convolution(2 * width, 2 * width, 3, size)
        total += convolution(width, 2 * width, 1, size)
        width *= 2
    return total


def test_operations_of_a_step_are_those_of_a_count_by_hand(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.chdir(packed)
    monkeypatch.setattr(measurement, "BUDGET", 0.0)
    params = params_file.validated(params_file.read())
    trial = try_out("pretrain", params, tmp_path, silent, time.time())
    width, hidden, dimension, side = 8, 64, 32, 8
    stem, rest = convolution(3, width, 3, side), forward_by_hand(width, side)
    projector, predictor = 2.0 * hidden * (8 * width + dimension), 2.0 * hidden * (dimension + dimension)
    # A view: once forth through the target; once forth and twice back through the online network and the predictor,
    # but an image needs no gradient.
    view = 4 * (rest + projector) + 3 * stem + 3 * predictor
    by_hand = 2 * view * params.pretrain.batch_size
    assert trial.cost.measured.step_flops == pytest.approx(by_hand, rel=0.01)  # the views have small products, too
    assert trial.weights == sum(
        tensor.nbytes
        for tensor in fresh_model(view_of(PretrainStage, params), open_store(STORE).manifest)[0].state_dict().values()
    )


def trial(seconds_a_step: float, epochs: int, runs: int = 1) -> Trial:
    """A trial of round numbers: 10 steps an epoch, and nothing but steps."""
    measured = Measurement(
        images=1_000, step_flops=2_000_000_000, step=seconds_a_step, start=0, end=0, save=0, checkpoint=50_000_000
    )
    cost = Cost(measured, 1_000, 100, epochs, ends=epochs, runs=runs)
    return Trial(cost, memory=2_000_000_000, device_memory=None, weights=20_000_000, device="the CPU (threads: 2)")


def test_the_total_counts_every_seed_of_finetune_and_pretrain_once() -> None:
    trials = {"pretrain": trial(0.5, 100), "finetune": trial(0.25, 60, runs=3)}
    lines = "\n".join(report(trials, free=10**12, memory=10**10))
    assert cells(lines, "pretrain")[1:] == ["1,000", "10", "2", "0.02", "4", "5", "100", "8 min 20 s", "2 GB"]
    assert cells(lines, "finetune")[1:] == ["1,000", "10", "2", "0.02", "8", "2.5", "3 × 60", "7 min 30 s", "2 GB"]
    assert cells(lines, "total")[1].startswith("15 min 50 s for one pretraining and 3 seeds of finetune, on the CPU")
    assert cells(lines, "disk")[1].startswith("280 MB with weights; a checkpoint takes 50 MB")  # 4 × (50 + 20)
    assert "Warning" not in lines


def test_too_little_disk_or_memory_is_a_warning() -> None:
    trials = {"pretrain": replace(trial(1, 1), memory=10**9), "finetune": trial(1, 1)}
    lines = report(trials, free=100_000_000, memory=1_500_000_000)
    assert [line for line in lines if line.startswith("Warning")] == [
        "Warning: training needs 140 MB of disk, 100 MB are free; make room first",
        "Warning: finetune needs 2 GB of memory, this machine has 1.5 GB; lower finetune.batch_size or network.width",
    ]


def test_the_memory_of_a_gpu_has_a_column_of_its_own() -> None:
    trials = {"pretrain": replace(trial(1, 1), device_memory=3_210_000_000)}
    trials["finetune"] = replace(trials["pretrain"], device_memory=400_000_000)
    lines = report(trials, free=10**12, memory=10**10)
    assert lines[0].endswith("GPU memory")
    assert lines[1].endswith("3.21 GB")
    assert lines[2].endswith("400 MB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3_599.7, "1 h 0 min"),
        (3 * 3_600 + 1_234, "3 h 21 min"),
        (2 * 86_400 + 5_000, "2 d 1 h"),
    ],
)
def test_times_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(11_234_567, "11.2 MB"), (999_000_000, "999 MB"), (1.5e12, "1,500 GB")])
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size(count) == text


def seconds_of(stage: str, params: ParamsFile, folder: Path) -> float:
    """Processor seconds that a stage really takes in this process."""
    store = open_store(STORE)
    model, _ = fresh_model(view_of(PretrainStage, params), store.manifest)
    images, labels, checkpoint = store.training_images, store.training_labels, Checkpoint(folder)
    started = time.process_time()
    if stage == "pretrain":
        pretrain(model, images, labels, view_of(PretrainStage, params), checkpoint)
    else:
        finetune(model, images, labels, view_of(FinetuneStage, params), params.pretrain.epochs, checkpoint)
    return time.process_time() - started


def test_an_estimate_of_the_digits_is_within_a_quarter_of_what_they_take(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/store").symlink_to(packed / "artifacts/store")
    shutil.copy(ROOT / "presets/digits.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measurement, "BUDGET", 1.0)  # a part of the images
    # Processor time of one thread: what else runs on the machine does not count. bench/estimate.py compares wall time.
    monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=time.process_time))
    params = changed(
        params_file.validated(params_file.read()), {"device": "cpu", "pretrain.epochs": 2, "finetune.epochs": 2}
    )
    for stage in ("pretrain", "finetune"):
        ratios = []
        for attempt in range(3):
            estimated = try_out(stage, params, tmp_path / f"estimate {attempt}", silent, time.time()).cost
            actual = seconds_of(stage, params, tmp_path / f"{stage} {attempt}")
            ratios.append((estimated.seconds - estimated.start_up) / actual)
        assert statistics.median(ratios) == pytest.approx(1.0, abs=0.25), f"{stage}: {ratios}"
