"""The paper's ablation: rows share what they can, finished runs are kept, and the table is that of the runs."""

import csv
import importlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from project import BIN, run_conr, write_params

from conr.data.store import Manifest
from conr.errors import UserError
from conr.parameters import ParamsFile
from conr.progress import Advance, silent
from conr.training.checkpoints import Checkpoint
from conr.training.log import read_log
from stages import experiments, params_file
from stages.ablate import ROWS, _table, mean_and_deviation, row
from stages.experiments import Experiment, Outcome, run_experiments
from stages.flags import VIEWS
from stages.paths import EXPERIMENTS, FINETUNE_LOG, METRICS, PRETRAINED
from stages.report import run_facts

# 492 digits and one epoch: enough to tell runs apart.
SMALL: dict[str, Any] = {
    "prepare": {"imbalance": 60.0},
    "pretrain": {"epochs": 1},
    "finetune": {"epochs": 1, "batch_size": 128},
    "evaluate": {"restarts": 2},
}
PAPER = {  # Table 2: NMI, ACC, ARI
    "InC": "79.4 87.8 76.6",
    "InC + LN": "81.9 89.6 78.7",
    "InC + ConAff": "84.6 91.1 82.4",
    "InC + LN + OBD": "83.9 91.1 82.3",
    "InC + LN + OBD + PR": "84.8 91.6 84.2",
    "InC + ConAff + OBD": "85.7 92.5 85.1",
    "InC + ConAff + OBD + PR": "86.7 93.2 86.1",
}


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `conr ablate`, with two seeds and a thread for each of its processes."""
    folder = tmp_path_factory.mktemp("ablated")
    write_params(folder, SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for command in (["prepare"], ["ablate", "--seeds", "0,1", "--jobs", "2"]):
            result = run_conr(folder, *command)
            assert result.returncode == 0, result.stderr
    assert (folder / "results/ablation/table.md").read_text() in result.stdout
    return folder


@pytest.fixture
def params(ablated: Path) -> ParamsFile:
    return params_file.validated(params_file.read(ablated / "params.yaml"))


@pytest.fixture
def here(ablated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same images, in which nothing has run; the current one."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/store").symlink_to(ablated / "artifacts/store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trainings that have been started; they run in this process."""
    names: list[str] = []

    class InThisProcess:
        def __init__(self, count: int, initialiser: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            initialiser(*arguments)

        def __enter__(self) -> "InThisProcess":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def kill(self) -> None:
            pass

        def submit(self, function: Callable[..., None], *arguments: object) -> Future[None]:
            names.append(function.__name__.strip("_"))
            future: Future[None] = Future()
            try:
                function(*arguments)
                future.set_result(None)
            except Exception as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(experiments, "Workers", InThisProcess)
    return names


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as each process of `ablated` had: sums of floats depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_table_has_the_rows_of_the_paper_in_its_order(ablated: Path) -> None:
    head, rule, *lines = (ablated / "results/ablation/table.md").read_text().splitlines()
    assert head == "| InC | LN | ConAff | OBD | PR | NMI | ACC | ARI | ACC median |"
    assert rule.count("---") == 9
    ticks = ["".join(cell.strip() or "-" for cell in line.split("|")[1:6]) for line in lines[:7]]
    assert ticks == ["✓----", "✓✓---", "✓-✓--", "✓✓-✓-", "✓✓-✓✓", "✓-✓✓-", "✓-✓✓✓"]
    assert lines[7] == ""
    assert lines[8].startswith("Percent; mean ± standard deviation of 2 seeds (0, 1). InC: instance concordance")


def test_the_runs_are_those_whose_means_the_table_shows(ablated: Path) -> None:
    with (ablated / "results/ablation/runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(run["row"], run["seed"]) for run in runs] == [(name, seed) for name in PAPER for seed in ("0", "1")]
    lines = (ablated / "results/ablation/table.md").read_text().splitlines()[2:9]
    for name, line in zip(PAPER, lines, strict=True):
        *scores, median = [cell.strip() for cell in line.split("|")[6:10]]
        for score, cell in zip(("nmi", "acc", "ari"), scores, strict=True):
            values = [100 * float(run[score]) for run in runs if run["row"] == name]
            mean, deviation = map(float, cell.split(" ± "))
            assert mean == pytest.approx(statistics.mean(values), abs=0.06)
            assert deviation == pytest.approx(statistics.stdev(values), abs=0.06)
        assert float(median) == pytest.approx(
            statistics.median(100 * float(run["acc"]) for run in runs if run["row"] == name), abs=0.06
        )


def test_rows_share_the_pretraining_of_a_seed(ablated: Path) -> None:
    with (ablated / "results/ablation/runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    for seed in ("0", "1"):
        assert len({run["pretrained_acc"] for run in runs if run["seed"] == seed}) == 1
    folders = [path.name.partition("-")[0] for path in (ablated / EXPERIMENTS).iterdir()]
    assert sorted(folders) == ["finetune"] * 14 + ["pretrain"] * 2
    assert not list((ablated / EXPERIMENTS).rglob("state.pt")), "finished runs need no checkpoint"
    kept = sorted(path.parent.name.partition("-")[0] for path in (ablated / EXPERIMENTS).rglob("*.safetensors"))
    assert kept == ["pretrain"] * 2, "a finished fine-tuning needs no weights"


def test_the_curves_are_drawn(ablated: Path) -> None:
    assert (ablated / "results/ablation/curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_repeated(
    ablated: Path, params: ParamsFile, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ablated)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    outcomes = run_experiments(params, ROWS, [1, 0], 1, silent)
    assert started == []
    with (ablated / "results/ablation/runs.csv").open() as file:
        runs = {(run["row"], run["seed"]): run["acc"] for run in csv.DictReader(file)}
    for name, of_seeds in outcomes.items():
        accuracies = [f"{outcome.finetuned['acc']:.4f}" for outcome in of_seeds]
        assert accuracies == [runs[name, "1"], runs[name, "0"]]


def test_an_outcome_is_what_the_stages_give(
    ablated: Path, params: ParamsFile, here: Path, started: list[str], one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = row("local", "none")
    alone = params_file.changed(params, {**chosen.changes, "seed": 1})
    for stage, view in VIEWS.items():
        if stage != "prepare":
            importlib.import_module(f"stages.{stage}").run(params_file.view_of(view, alone), silent)
    kept = [path.read_bytes() for path in (ablated / EXPERIMENTS).glob("pretrain-*/weights.safetensors")]
    assert kept.count((here / PRETRAINED).read_bytes()) == 1

    after = json.loads((here / METRICS).read_text())
    curve = read_log(here / FINETUNE_LOG)
    monkeypatch.chdir(ablated)
    (outcome,) = run_experiments(params, [chosen], [1], 1, silent)[chosen.name]
    assert started == []
    for rows in (curve, outcome.curve):
        rows[0].pop("seconds")
    assert outcome.curve == curve
    for found, expected in ((outcome.pretrained, after["pretrained"]), (outcome.finetuned, after)):
        for score in ("acc", "nmi", "ari", "silhouette", "inertia"):
            assert found[score] == pytest.approx(expected[score], abs=2e-4), score
    assert outcome.pretrained != outcome.finetuned


def test_only_what_depends_on_a_changed_parameter_runs_again(
    params: ParamsFile, here: Path, started: list[str]
) -> None:
    rows = [Experiment("all", {"boundary.filter": "none"}), Experiment("some", {"boundary.filter": "fixed"})]
    first = run_experiments(params, rows, [0], 1, silent)
    assert started == ["pretrain", "finetune", "finetune"]
    assert first["all"][0].pretrained == first["some"][0].pretrained
    assert first["all"][0].finetuned != first["some"][0].finetuned

    started.clear()
    run_experiments(params, [*rows, Experiment("few", {"boundary.filter": "fixed", "fr": 0.3})], [0], 1, silent)
    assert started == ["finetune"]
    started.clear()
    run_experiments(params, [Experiment("others", {"pretrain.crop_scale": 0.9})], [0], 1, silent)
    assert started == ["pretrain", "finetune"]
    assert len(list((here / EXPERIMENTS).iterdir())) == 2 + 4


def test_scores_of_other_labels_are_not_taken_from_the_cache(
    ablated: Path, params: ParamsFile, here: Path, started: list[str]
) -> None:
    (before,) = run_experiments(params, [ROWS[0]], [0], 1, silent)[ROWS[0].name]
    (here / "artifacts/store").unlink()
    (here / "artifacts/store").mkdir()
    (here / "artifacts/store/images.npy").symlink_to(ablated / "artifacts/store/images.npy")
    manifest = json.loads((ablated / "artifacts/store/manifest.json").read_text())
    manifest["labels"].reverse()
    (here / "artifacts/store/manifest.json").write_text(json.dumps(manifest))
    (after,) = run_experiments(params, [ROWS[0]], [0], 1, silent)[ROWS[0].name]
    assert after.finetuned["acc"] != before.finetuned["acc"]


def test_contradicting_rows_are_refused_before_anything_runs(
    params: ParamsFile, here: Path, started: list[str]
) -> None:
    rows = [ROWS[0], Experiment("too many", {"k2": 21})]
    with pytest.raises(UserError, match="k2 = 21 is larger than k1 = 20"):
        run_experiments(params, rows, [0, 1], 1, silent)
    with pytest.raises(UserError, match=r"fr = 2\.0 should be less than or equal to 1"):
        run_experiments(params, [ROWS[0], Experiment("too large", {"fr": 2.0})], [0], 1, silent)
    with pytest.raises(UserError, match=r"moco needs finetune\.instance above 0"):
        run_experiments(params_file.changed(params, {"host.framework": "moco"}), ROWS, [0], 1, silent)
    assert started == []
    assert not (here / EXPERIMENTS).exists()


class Recorder:
    """A `Progress` that keeps what it is told."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.amounts: list[int] = []

    @contextmanager
    def __call__(self, description: str, total: int, done: int = 0) -> Iterator[Advance]:
        self.total, self.done = total, done

        def advance(amount: int, note: str = "") -> None:
            self.amounts.append(amount)
            self.told()

        yield advance

    def told(self) -> None:
        """Called after each report."""


ENDLESS = {"pretrain.epochs": 1_000_000, "optimiser.schedule_epochs": 2_000_000}


@pytest.mark.timeout(120)
def test_a_killed_training_has_told_its_epochs_and_goes_on_after_the_saved_ones(
    params: ParamsFile, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killer(Recorder):
        def told(self) -> None:
            if sum(self.amounts) >= 2:  # the first epoch is saved before the second ends
                (worker,) = multiprocessing.active_children()
                worker.kill()

    monkeypatch.setattr(experiments, "POLL", 0.01)
    endless = params_file.changed(params, ENDLESS)
    first = Killer()
    with pytest.raises(UserError, match=r"a training was killed, most likely for want of memory; .*--jobs"):
        run_experiments(endless, [ROWS[0]], [0], 1, first)
    assert (first.done, first.total) == (0, 1_000_001)

    (state,) = (here / EXPERIMENTS).rglob("state.pt")
    saved = Checkpoint(state.parent).epochs
    assert saved >= 1
    second = Killer()
    with pytest.raises(UserError):
        run_experiments(endless, [ROWS[0]], [0], 1, second)
    assert (second.done, second.total) == (saved, 1_000_001)
    assert max(second.amounts) < 1000, "what was done before is not told again"


def test_the_progress_counts_each_epoch_once_and_finished_runs_as_done(
    params: ParamsFile, here: Path, started: list[str]
) -> None:
    longer = params_file.changed(params, {"pretrain.epochs": 3, "finetune.epochs": 2})
    for rows, done, told in ((ROWS[:1], 0, 5), (ROWS[:2], 5, 2), (ROWS[:2], 7, 0)):
        recorder = Recorder()
        run_experiments(longer, rows, [0], 1, recorder)
        assert (recorder.done, sum(recorder.amounts), recorder.total) == (done, told, done + told)


def test_too_little_memory_on_the_gpu_is_told_to_the_user(
    params: ParamsFile, here: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(experiments, "pretrain", too_large)
    with pytest.raises(UserError, match=r"does not fit into the GPU's memory; lower .*batch_size.*--jobs"):
        run_experiments(params, ROWS, [0], 1, silent)


def test_a_failed_run_is_named(
    params: ParamsFile, here: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: object) -> None:
        raise UserError("the loss is not a finite number")

    monkeypatch.setattr(experiments, "finetune", diverges)
    with pytest.raises(UserError, match=r"^InC \+ LN, seed 3: the loss is not a finite number$"):
        run_experiments(params, [ROWS[1]], [3], 1, silent)


@pytest.mark.parametrize(
    ("seeds", "jobs", "of_pretraining", "of_finetuning"),
    [([0], 64, 64, 32), ([0, 1], 64, 32, 16), ([0, 1], 3, 32, 21), ([0], 1, 64, 64)],
)
def test_trainings_that_can_run_side_by_side_share_the_threads(
    params: ParamsFile,
    here: Path,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    seeds: list[int],
    jobs: int,
    of_pretraining: int,
    of_finetuning: int,
) -> None:
    used: list[tuple[str, int]] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(experiments, "_use_threads", lambda count: used.append((started[-1], count)))
    run_experiments(params, ROWS[:2], seeds, jobs, silent)
    assert set(used) == {("pretrain", of_pretraining), ("finetune", of_finetuning)}
    used.clear()
    next((here / EXPERIMENTS).glob("finetune-*/scores.json")).unlink()
    run_experiments(params, ROWS[:2], seeds, jobs, silent)
    assert used == [("finetune", of_finetuning)], "what was finished before changes nothing"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_training_outlives_its_command(ablated: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    write_params(tmp_path, SMALL)
    params = params_file.changed(params_file.validated(params_file.read(tmp_path / "params.yaml")), ENDLESS)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump()))
    (tmp_path / "artifacts").symlink_to(ablated / "artifacts")
    command = subprocess.Popen(
        [BIN / "conr", "ablate", "--seeds", "0,1", "--jobs", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs, this test among them, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while len(list((tmp_path / EXPERIMENTS).rglob("state.pt"))) < 2:
            with suppress(subprocess.TimeoutExpired):
                command.wait(timeout=0.02)
            assert command.returncode is None, "the command ended before two trainings saved a checkpoint"
        command.send_signal(number)  # to the command only
        _, errors = command.communicate(timeout=60)  # the pipe closes when the last process that holds it has ended
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    assert command.returncode == code
    if number != signal.SIGKILL:
        assert errors == "Error: stopped; the same command goes on after the last saved epoch\n"


def test_without_labels_it_is_refused(project: Path) -> None:
    assert run_conr(project, "prepare", "--labels", "none").returncode == 0
    result = run_conr(project, "ablate")
    assert result.returncode == 2
    assert "the store holds no labels, so the rows cannot be scored; set prepare.labels" in result.stderr
    assert not (project / ".conr").exists()


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("x", "'x' should be whole numbers such as 0,1,2"),
        ("-1", "seeds.0 = -1 should be greater than or equal to 0"),
        ("0,0", "seed"),
        ("", "seed"),
    ],
)
def test_impossible_seeds_are_refused(ablated: Path, tmp_path: Path, seeds: str, message: str) -> None:
    (tmp_path / "params.yaml").write_bytes((ablated / "params.yaml").read_bytes())
    (tmp_path / "artifacts").symlink_to(ablated / "artifacts")
    (tmp_path / ".conr").symlink_to(ablated / ".conr")  # nothing would have to be trained
    result = run_conr(tmp_path, "ablate", "--seeds", seeds, "--jobs", "1")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert message in result.stderr


def test_means_are_in_percent_with_the_sample_standard_deviation() -> None:
    assert mean_and_deviation([0.5]) == "50.0"
    assert mean_and_deviation([0.9, 0.92]) == "91.0 ± 1.4"
    assert mean_and_deviation([0.5, 0.6, 1.0]) == "70.0 ± 26.5"


def made_up(dataset: str, count: int, image_size: int, **changes: Any) -> Manifest:
    """A manifest of which only the facts matter that decide what may stand beside it."""
    facts: dict[str, Any] = {"protocol": "all", "imbalance": 1.0, "train_count": count, "score_start": 0} | changes
    return Manifest(
        source=dataset,
        dataset=dataset,
        count=count,
        image_size=image_size,
        fit="crop",
        mean=[0.5] * 3,
        std=[0.2] * 3,
        checksum="",
        files=[],
        labels=None,
        class_names=[],
        skipped=[],
        **facts,
    )


OUTCOMES = {
    experiment.name: [
        Outcome({}, {"nmi": 0.5 + number / 100, "acc": 0.6 + number / 100 + seed / 10, "ari": 0.4}, [], [])
        for seed in range(3)
    ]
    for number, experiment in enumerate(ROWS)
}


def test_the_paper_s_numbers_stand_beside_a_run_on_the_same_images() -> None:
    head, _, *lines = _table(OUTCOMES, run_facts(made_up("cifar10", 60_000, 32), 10), [0, 1, 2])
    assert head.endswith("| ACC median | paper: NMI | ACC | ARI |")
    for number, (line, published) in enumerate(zip(lines, PAPER.values(), strict=False)):
        cells = [cell.strip() for cell in line.split("|")[6:-1]]
        own = [f"{50 + number:.1f} ± 0.0", f"{70 + number:.1f} ± 10.0", "40.0 ± 0.0", f"{70 + number:.1f}"]
        assert cells == own + published.split()


@pytest.mark.parametrize(
    ("manifest", "clusters"),
    [
        (made_up("digits", 1797, 8), 10),
        (made_up("cifar10", 59_999, 32), 10),
        (made_up("cifar10", 60_000, 16), 10),
        (made_up("cifar10", 60_000, 32, protocol="held-out", train_count=50_000, score_start=50_000), 10),
        (made_up("cifar10", 60_000, 32, imbalance=10.0), 10),
        (made_up("cifar10", 60_000, 32), 20),
    ],
    ids=["digits", "one image less", "smaller images", "held-out", "long tail", "more clusters"],
)
def test_the_paper_s_numbers_do_not_stand_beside_a_run_on_others(manifest: Manifest, clusters: int) -> None:
    lines = _table(OUTCOMES, run_facts(manifest, clusters), [0, 1, 2])
    assert "paper" not in lines[0]
    assert {line.count("|") for line in lines[:9]} == {10}


def test_one_seed_is_called_what_it_is() -> None:
    outcomes = {name: of_seeds[:1] for name, of_seeds in OUTCOMES.items()}
    *_, note = _table(outcomes, run_facts(made_up("digits", 1797, 8), 10), [0])
    assert note.startswith("Percent; one seed, which proves nothing (0). ")
