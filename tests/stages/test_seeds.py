"""Several seeds in one run: each gives what it gives alone, and the scores are means with standard deviations."""

import importlib
import json
import shutil
import statistics
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import run_conr, write_params

from conr.data.store import open_store
from conr.errors import UserError
from conr.export import embed, export, open_session
from conr.parameters import ExtractStage, FinetuneStage, Host
from conr.progress import Advance, silent
from conr.training.checkpoints import load_weights
from conr.training.group import finetune as train
from stages import cli, extract, finetune, params_file
from stages.flags import VIEWS
from stages.paths import (
    CHECKPOINTS,
    EMBEDDINGS,
    FINETUNE_LOG,
    FINETUNED,
    FURTHER_EMBEDDINGS,
    FURTHER_SEEDS,
    METRICS,
    PRETRAINED,
    STORE,
    SUMMARY,
)
from stages.paths import SEEDS as SEEDS_FILE

SEEDS = [3, 4]
SHORT: dict[str, Any] = {"pretrain": {"epochs": 1}, "finetune": {"epochs": 1}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after all stages, with two seeds in params.yaml."""
    folder = tmp_path_factory.mktemp("seeds")
    write_params(folder, {**SHORT, "seeds": SEEDS})
    content = params_file.validated(params_file.read(folder / "params.yaml"))
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.delenv("DVC_ROOT", raising=False)
        for name, view in VIEWS.items():
            if "seeds" in view.model_fields:
                result = run_conr(folder, name)
                assert result.returncode == 0, result.stderr
            else:  # in this process, which need not load PyTorch again
                stage = importlib.import_module(f"stages.{name}")
                stage.run(view.model_validate({field: getattr(content, field) for field in view.model_fields}), silent)
    return folder


@pytest.fixture
def pretrained(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same pretrained networks, in which finetune has not run; the current one."""
    (tmp_path / "artifacts").mkdir()
    for artifact in ("store", "pretrain"):
        (tmp_path / "artifacts" / artifact).symlink_to(finished / "artifacts" / artifact)
    write_params(tmp_path, SHORT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def parameters(seed: int, seeds: list[int]) -> FinetuneStage:
    """Those of the current folder's params.yaml, with seeds."""
    params = params_file.changed(params_file.validated(params_file.read()), {"seed": seed, "seeds": seeds})
    return FinetuneStage.model_validate({name: getattr(params, name) for name in FinetuneStage.model_fields})


def weights_of(folder: Path, seed: int) -> Path:
    return folder / (FINETUNED if seed == SEEDS[0] else FURTHER_SEEDS / str(seed) / "weights.safetensors")


def test_each_seed_has_its_own_weights_log_and_embeddings(finished: Path) -> None:
    first, second = (weights_of(finished, seed).read_bytes() for seed in SEEDS)
    assert first != second
    assert (finished / FINETUNE_LOG).read_text() != (finished / FURTHER_SEEDS / "4/log.csv").read_text()
    assert [path.name for path in (finished / FURTHER_EMBEDDINGS).iterdir()] == ["4.npy"]
    one, other = np.load(finished / EMBEDDINGS), np.load(finished / FURTHER_EMBEDDINGS / "4.npy")
    assert one.shape == other.shape == (1797, 16)
    assert not np.allclose(one, other, atol=1e-3)
    assert not list((finished / CHECKPOINTS).iterdir()), "finished runs leave no checkpoint"


@pytest.mark.parametrize(("seed", "seeds"), [(3, []), (4, []), (0, [4])], ids=["seed: 3", "seed: 4", "seeds: [4]"])
def test_a_seed_alone_gives_the_same_weights(finished: Path, pretrained: Path, seed: int, seeds: list[int]) -> None:
    finetune.run(parameters(seed, seeds), silent)
    assert FINETUNED.read_bytes() == weights_of(finished, (seeds or [seed])[0]).read_bytes()
    assert [path.name for path in FURTHER_SEEDS.iterdir()] == ["seeds.json"]


def test_the_second_seed_alone_gives_the_same_embeddings(finished: Path, tmp_path: Path) -> None:
    model, _ = load_weights(weights_of(finished, 4))
    export(model.target, 8, tmp_path / "encoder.onnx", {})
    images = open_store(finished / STORE).images
    embed(open_session(tmp_path / "encoder.onnx", "cpu"), images, tmp_path / "alone.npy", silent, "embed")
    np.testing.assert_array_equal(np.load(tmp_path / "alone.npy"), np.load(finished / FURTHER_EMBEDDINGS / "4.npy"))


def test_scores_are_means_with_standard_deviations(finished: Path) -> None:
    metrics = json.loads((finished / METRICS).read_text())
    assert metrics["seeds"] == 2
    assert list(metrics["seed"]) == ["3", "4"]
    assert metrics["seed"]["3"] != metrics["seed"]["4"]
    for name in ("acc", "nmi", "ari", "silhouette", "balance", "inertia"):
        values = [metrics["seed"][seed][name] for seed in ("3", "4")]
        assert metrics[name] == pytest.approx(statistics.mean(values), abs=1e-4)
        assert metrics["deviation"][name] == pytest.approx(statistics.stdev(values), abs=1e-4)
    assert metrics["gain"]["acc"] == pytest.approx(metrics["acc"] - metrics["pretrained"]["acc"], abs=2e-4)


def test_the_summary_has_a_row_for_each_seed_and_says_how_many(finished: Path) -> None:
    summary = (finished / SUMMARY).read_text()
    assert [line.split("  ")[0] for line in summary.splitlines()[1:5]] == [
        "pretrained",
        "seed 3",
        "seed 4",
        "fine-tuned (ConNR), mean",
    ]
    assert "Mean ± standard deviation of 2 seeds of fine-tuning and k-means (3, 4)" in summary
    assert "Mean ± standard deviation of 2 seeds" in (finished / "results/report.html").read_text()


def test_seeds_on_the_command_line_are_those_of_the_file(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(cli, "run_stage", lambda name, *arguments: given.extend(arguments))
    for stage in ("finetune", "evaluate"):
        write_params(pretrained, SHORT)
        cli.app([stage, "--seeds", "3,4"], standalone_mode=False)
        write_params(pretrained, {**SHORT, "seeds": SEEDS})
        cli.app([stage], standalone_mode=False)
        cli.app([stage, "--seeds", "3 4"], standalone_mode=False)
        flags, file, spaces = given
        assert flags == file == spaces
        assert file.seeds == SEEDS  # type: ignore[attr-defined]
        given.clear()


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("x", "'x' should be whole numbers such as 0,1,2"),
        ("1.5", "'1.5' should be whole numbers such as 0,1,2"),
        ("3,4,3", "seeds = [3, 4, 3] names a seed twice"),
        ("3,-4", "seeds.1 = -4 should be greater than or equal to 0"),
    ],
)
def test_impossible_seeds_are_refused(pretrained: Path, seeds: str, message: str) -> None:
    result = run_conr(pretrained, "finetune", "--seeds", seeds)
    assert result.returncode == 2, result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (pretrained / FINETUNED).exists()


def test_a_finished_seed_is_not_trained_again_after_a_failure_in_the_next(
    finished: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> Any:
        if arguments[-1] == "finetune, seed 4":
            raise UserError("the power is gone")
        return train(*arguments)

    monkeypatch.setattr(finetune, "finetune", failing)
    with pytest.raises(UserError, match="the power is gone"):
        finetune.run(parameters(0, SEEDS), silent)
    assert FINETUNED.exists()
    monkeypatch.setattr(finetune, "finetune", train)
    for output in (FINETUNED.parent, FURTHER_SEEDS):
        shutil.rmtree(output)  # as DVC does before it runs a stage again

    tasks = []

    @contextmanager
    def watched(description: str, total: int, done: int = 0) -> Iterator[Advance]:
        tasks.append((description, total - done))
        with silent(description, total, done) as advance:
            yield advance

    finetune.run(parameters(0, SEEDS), watched)
    assert tasks == [("finetune, seed 3", 0), ("finetune, seed 4", 1797 // 256)]
    for seed in SEEDS:
        assert weights_of(Path(), seed).read_bytes() == weights_of(finished, seed).read_bytes()
    assert PRETRAINED.exists()
    assert not list(CHECKPOINTS.iterdir())


def test_a_refused_run_keeps_what_an_earlier_one_made_and_an_unfinished_one_is_not_taken_for_finished(
    finished: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / FURTHER_SEEDS, FURTHER_SEEDS)
    files = sorted(FURTHER_SEEDS.rglob("*"))
    other = parameters(0, [7]).model_copy(update={"host": Host(framework="simsiam")})
    with pytest.raises(UserError, match=r"was trained with host\.framework = byol, not simsiam"):
        finetune.run(other, silent)
    assert sorted(FURTHER_SEEDS.rglob("*")) == files

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune.run(parameters(0, [7]), silent)
    with pytest.raises(UserError, match=rf"{SEEDS_FILE} is missing or not whole .*; run conr finetune first"):
        extract.run(ExtractStage(device="cpu"), silent)


def test_fewer_seeds_leave_nothing_of_the_others_behind(finished: Path, pretrained: Path) -> None:
    """Else extract would embed the weights of an earlier run, and evaluate could take them for this one's."""
    shutil.copytree(finished / FURTHER_SEEDS, FURTHER_SEEDS)
    finetune.run(parameters(0, [3]), silent)
    assert [path.name for path in FURTHER_SEEDS.iterdir()] == ["seeds.json"]


def test_embeddings_of_other_seeds_are_not_taken_for_those_asked_for(finished: Path) -> None:
    result = run_conr(finished, "evaluate", "--seeds", "3")
    assert result.returncode == 2
    assert "the embeddings are of seeds [3, 4], not [3]; run conr finetune and conr extract first" in result.stderr
