"""Several seeds in one run: each gives what it gives in a run of its own; scores are means with standard deviations."""

import json
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from project import IMAGES, SEEDS, run_stages, tiny

from conr.data.store import open_store
from conr.embedding.export import export
from conr.embedding.session import Properties, embed, open_session
from conr.errors import UserError
from conr.observer import SILENT, Observer
from conr.parameters import ExtractStage, FinetuneStage
from conr.pipeline import params_file
from conr.pipeline.extract import extract
from conr.pipeline.finetune import finetune
from conr.pipeline.workspace import Workspace
from conr.refinement import objective
from conr.stages import cli
from conr.training.weights import load_weights, save_weights


@pytest.fixture
def pretrained(finished: Workspace, workspace: Workspace) -> Workspace:
    """The same pretrained networks, in a workspace in which finetune has not run."""
    workspace.borrow(finished, "artifacts/store", "artifacts/pretrain")
    return workspace


def parameters(seed: int, seeds: list[int]) -> FinetuneStage:
    return FinetuneStage.of(tiny({"seed": seed, "seeds": seeds}))


def kept(workspace: Workspace) -> list[str]:
    """What the folder of all seeds holds."""
    return sorted(path.relative_to(workspace.refined).as_posix() for path in workspace.refined.rglob("*"))


def files_of(*seeds: int) -> list[str]:
    of_each = [[f"{seed}", f"{seed}/log.csv", f"{seed}/weights.safetensors"] for seed in seeds]
    return sorted(name for names in of_each for name in names)


def test_each_seed_has_its_own_weights_log_and_embeddings(finished: Workspace) -> None:
    assert kept(finished) == [*files_of(3, 4), "record.json"]
    first, second = (finished.finetuned(seed) for seed in SEEDS)
    assert first.weights.read_bytes() != second.weights.read_bytes()
    assert first.log.read_text() != second.log.read_text()
    names = {"pretrained.npy", "3.npy", "4.npy", "record.json"}
    assert {path.name for path in finished.embedded.iterdir()} == names
    one, other = (np.load(finished.embeddings(seed)) for seed in SEEDS)
    assert one.shape == other.shape == (IMAGES, 16)
    assert not np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(("seed", "seeds"), [(3, []), (4, []), (0, [4])], ids=["seed: 3", "seed: 4", "seeds: [4]"])
def test_a_seed_in_a_run_of_its_own_gives_the_same_weights(
    finished: Workspace, pretrained: Workspace, seed: int, seeds: list[int]
) -> None:
    only = (seeds or [seed])[0]
    logs = finetune(pretrained, parameters(seed, seeds))
    assert list(logs) == [only]
    assert pretrained.finetuned(only).weights.read_bytes() == finished.finetuned(only).weights.read_bytes()
    assert kept(pretrained) == [*files_of(only), "record.json"]


def test_equal_weights_are_equal_files(finished: Workspace, workspace: Workspace) -> None:
    """Else DVC, and what is made from them, would take them for others."""
    model, spec, epochs = load_weights(finished.pretrained.weights)
    for _ in range(8):
        save_weights(workspace.pretrained.weights, model, spec, epochs)
        assert workspace.pretrained.weights.read_bytes() == finished.pretrained.weights.read_bytes()


def test_weights_that_are_exported_again_give_the_same_embeddings(finished: Workspace, workspace: Workspace) -> None:
    model, _, epochs = load_weights(finished.finetuned(4).weights)
    assert epochs == 2 + 1, "those of pretraining count"
    export(model.target, 8, workspace.root / "encoder.onnx", Properties())
    images = open_store(finished.store).images
    embed(open_session(workspace.root / "encoder.onnx", "cpu"), images, workspace.root / "again.npy", SILENT, "embed")
    np.testing.assert_array_equal(np.load(workspace.root / "again.npy"), np.load(finished.embeddings(4)))


def test_scores_are_means_with_standard_deviations(finished: Workspace) -> None:
    metrics = json.loads(finished.metrics.read_text())
    assert metrics["seeds"] == 2
    assert list(metrics["seed"]) == ["4", "3"]
    assert metrics["seed"]["3"] != metrics["seed"]["4"]
    for name in ("acc", "nmi", "ari", "silhouette", "size_entropy", "inertia"):
        values = [metrics["seed"][seed][name] for seed in ("3", "4")]
        assert metrics[name] == pytest.approx(statistics.mean(values), abs=1e-4)
        assert metrics["std"][name] == pytest.approx(statistics.stdev(values), abs=1e-4)
    assert metrics["gain"]["acc"] == pytest.approx(metrics["acc"] - metrics["pretrained"]["acc"], abs=2e-4)


def test_the_summary_has_a_row_for_each_seed_and_says_how_many(finished: Workspace) -> None:
    summary = finished.summary.read_text()
    assert [line.split("  ")[0] for line in summary.splitlines()[1:7]] == [
        "pretrained, k-means",
        "pretrained, graph",
        "seed 4",
        "seed 3",
        "fine-tuned (ConNR), mean, graph",
        "fine-tuned (ConNR), mean, k-means",
    ]
    assert "Mean ± standard deviation of 2 seeds of fine-tuning and k-means (4, 3)" in summary
    assert "Mean ± standard deviation of 2 seeds" in finished.report.read_text()


@pytest.mark.parametrize("stage", ["finetune", "evaluate"])
def test_seeds_on_the_command_line_are_those_of_the_file(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    files = {False: tiny(), True: tiny({"seeds": SEEDS})}
    monkeypatch.setattr(cli, "run", lambda *arguments: given.append(arguments))

    def called(*flags: str, named: bool = False) -> tuple[Any, ...]:
        monkeypatch.setattr(params_file, "read", lambda: files[named])
        cli.app([stage, *flags], standalone_mode=False)
        return given.pop()

    assert called("--seeds", "4,3") == called(named=True) == called("--seeds", "4 3", named=True)
    assert called(named=True) == (stage, files[True])


@pytest.mark.parametrize(
    ("seeds", "message"), [([3, 4, 3], "names a seed twice"), ([3, -4], "seeds.1 = -4 should be greater than")]
)
def test_impossible_seeds_are_refused(seeds: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny({"seeds": seeds})


def test_a_finished_seed_is_not_trained_again_after_a_failure_in_the_next(
    finished: Workspace, pretrained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = objective.finetune

    def failing(*arguments: Any) -> Any:
        if arguments[-1] == "finetune, seed 3":
            raise UserError("the power is gone")
        return train(*arguments)

    monkeypatch.setattr(objective, "finetune", failing)
    with pytest.raises(UserError, match="the power is gone"):
        finetune(pretrained, parameters(0, SEEDS))
    assert kept(pretrained) == files_of(4)
    monkeypatch.setattr(objective, "finetune", train)
    shutil.rmtree(pretrained.refined)  # as DVC does before it runs a stage again

    tasks = []

    class Watching(Observer):
        @contextmanager
        def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
            tasks.append((name, total - done))
            yield

    finetune(pretrained, parameters(0, SEEDS), Watching())
    assert tasks == [("finetune, seed 4", 0), ("finetune, seed 3", IMAGES // 256)]
    for seed in SEEDS:
        assert pretrained.finetuned(seed).weights.read_bytes() == finished.finetuned(seed).weights.read_bytes()
    assert pretrained.pretrained.weights.exists()
    assert not any(pretrained.checkpoint("").iterdir())


def test_a_refused_run_keeps_what_an_earlier_one_made_and_an_unfinished_one_is_not_taken_for_finished(
    finished: Workspace, pretrained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.refined, pretrained.refined)
    files = kept(pretrained)
    other = FinetuneStage.of(tiny({"seeds": [7], "framework.name": "simsiam"}))
    with pytest.raises(UserError, match=r"was trained with framework\.name = byol, not simsiam"):
        finetune(pretrained, other)
    assert kept(pretrained) == files

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(objective, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune(pretrained, parameters(0, [7]))
    with pytest.raises(UserError, match=rf"{pretrained.refined}/record\.json is missing .*; run conr finetune again"):
        extract(pretrained, ExtractStage(device="cpu"))


def test_fewer_seeds_leave_nothing_of_the_others_behind(finished: Workspace, pretrained: Workspace) -> None:
    """Else extract would embed the weights of an earlier run, and evaluate could take them for this one's."""
    shutil.copytree(finished.refined, pretrained.refined)
    finetune(pretrained, parameters(0, [3]))
    assert kept(pretrained) == [*files_of(3), "record.json"]


def test_embeddings_of_other_seeds_are_not_taken_for_those_asked_for(finished: Workspace, workspace: Workspace) -> None:
    workspace.borrow(finished, "artifacts/embeddings", "artifacts/finetune", "artifacts/pretrain")
    message = r"the embeddings are of seeds \[4, 3\], not \[3\]; run conr finetune and conr extract first"
    with pytest.raises(UserError, match=message):
        run_stages(workspace, tiny({"seeds": [3]}), "evaluate")
    assert not workspace.results.exists()
