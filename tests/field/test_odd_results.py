"""Results of images that nobody expects (equal ones, labels that say nothing), and of runs in which a figure fails."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from embedded_run import embedded, groups, unit
from project import table

from conr.data.store import load_manifest, write_store
from conr.evaluation.evaluate import Evaluation
from conr.evaluation.evaluate import evaluate as cluster
from conr.evaluation.plane import embedding_map
from conr.parameters.groups import Evaluate
from conr.pipeline import evaluate as stage
from conr.pipeline.evaluate import evaluate
from conr.pipeline.workspace import RECORD, Workspace
from conr.report import figures

NO_MAP = "There is no map of the images: their embeddings are all (nearly) equal."
FILES = ["assignments.csv", "assignments.parquet", "ballots.npy", "centroids.npy", "clusterer.onnx", "figures"]
FILES += ["metrics.json", "plots", "record.json", "report.html"]
FILES.append("summary.txt")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def clustered(embeddings: np.ndarray, clusters: int) -> Evaluation:
    return cluster(embeddings, None, clusters, Evaluate(n_init=3, max_iter=20), seed=0)


# Equal embeddings


@pytest.mark.parametrize(("count", "dimension"), [(40, 8), (1797, 128)])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_equal_embeddings_have_no_map(count: int, dimension: int, noise: float) -> None:
    generator = np.random.default_rng(count)
    row = generator.normal(size=(1, dimension))
    assert embedding_map(unit(np.repeat(row, count, 0) + noise * generator.normal(size=(count, dimension))), 0) is None


def test_equal_images_are_one_point_of_the_map() -> None:
    plane = embedding_map(groups([20, 30, 5], noise=1e-7), seed=0)
    assert plane is not None
    points, counts = np.unique(plane, axis=0, return_counts=True)
    assert sorted(counts) == [5, 20, 30]
    assert np.linalg.norm(points[:, None] - points[None], axis=2)[np.triu_indices(3, 1)].min() > 0.5


@pytest.mark.parametrize("dimension", [1, 2, 16])
def test_two_images_have_a_map(dimension: int) -> None:
    plane = embedding_map(unit(np.eye(2, dimension) - 0.5), seed=0)
    assert plane is not None
    assert plane.shape == (2, 2)
    assert np.linalg.norm(plane[0] - plane[1]) > 0.5


def test_results_of_equal_images_are_whole_and_say_what_they_are(tmp_path: Path) -> None:
    workspace, parameters = embedded(tmp_path, groups([24]), labels=["a", "b"] * 12)
    results = evaluate(workspace, parameters)
    assert names(workspace.results) == FILES
    assert results.first.sizes.tolist() == [24, 0, 0]
    assert not (workspace.figures / "map.png").exists()
    summary = workspace.summary.read_text()
    assert NO_MAP in summary
    assert "The embeddings of all images are (nearly) equal" in summary
    assert "Clusters 1 to 2 are empty" in summary
    assert NO_MAP in workspace.report.read_text()
    assert "-0.000" not in summary + workspace.report.read_text()
    assert json.loads(workspace.metrics.read_text())["size_entropy"] == 0
    assert "-0.0" not in workspace.metrics.read_text()
    columns = ("cluster", "next_cluster", "next_distance", "boundary_ratio")
    assert {tuple(row[name] for name in columns) for row in table(workspace.assignments)} == {("0", "", "", "0.0000")}
    assert "could also be" not in workspace.report.read_text()


# More clusters than different images


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_only_clusters_that_hold_images_have_centroids_and_are_next(noise: float) -> None:
    found = clustered(groups([30, 20, 10], noise), clusters=8)
    assert found.sizes.tolist() == [30, 20, 10, 0, 0, 0, 0, 0]
    assert found.centroids.shape == (3, 16)
    np.testing.assert_allclose(found.centroids, np.eye(3, 16), atol=1e-5)
    assert (found.assignment.next_cluster < 3).all()
    assert (found.assignment.next_cluster != found.assignment.clusters).all()
    assert found.assignment.boundary_ratio.max() < 0.01


def test_copies_of_a_group_do_not_hide_that_another_one_is_larger() -> None:
    for seed in range(5):
        found = cluster(groups([25, 16], 1e-7), None, 6, Evaluate(n_init=1), seed)
        assert found.sizes.tolist() == [25, 16, 0, 0, 0, 0]


def test_empty_clusters_are_one_line_and_new_images_never_go_there(tmp_path: Path) -> None:
    workspace, parameters = embedded(tmp_path, groups([12, 8, 5]), changes={"clusters": 9})
    evaluate(workspace, parameters)
    (line,) = [line for line in workspace.summary.read_text().splitlines() if " empty" in line]
    assert line.startswith("Clusters 3 to 8 are empty: there seem to be fewer different images than clusters")
    page = workspace.report.read_text()
    assert page.count(line) == 1
    assert page.count("No image is nearest to this cluster.") == 6
    assert np.load(workspace.centroids).shape == (3, 16)
    assert {row["next_cluster"] for row in table(workspace.assignments)} <= {"0", "1", "2"}


def test_nearly_empty_clusters_are_one_line(tmp_path: Path) -> None:
    workspace, parameters = embedded(tmp_path, groups([40, 40, 1, 1]), changes={"clusters": 4})
    evaluate(workspace, parameters)
    (line,) = [line for line in workspace.summary.read_text().splitlines() if " empty" in line]
    assert line.startswith("These clusters are nearly empty (images): 2 (1), 3 (1).")


# Labels that say nothing


@pytest.mark.parametrize(
    ("labels", "note", "scored"),
    [
        (["a"] * 24, "All labels are “a”: with one class there is no accuracy, NMI or ARI.", False),
        (["train", "val"] * 12, "The labels (train, val) are parts of a data set, not classes", True),
        (["Test", "Train"] * 12, "The labels (Test, Train) are parts of a data set, not classes", True),
        (list(range(24)), "Every image has a label of its own: the scores against labels mean nothing.", True),
        (["a", "train"] * 12, "", True),
    ],
)
def test_scores_against_labels_that_say_nothing(labels: list[str], note: str, scored: bool, tmp_path: Path) -> None:
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1), labels=labels)
    results = evaluate(workspace, parameters)
    assert ("acc" in results.first.scores) == scored
    for text in (workspace.summary.read_text(), workspace.report.read_text()):
        assert note in text
        assert note or "mean nothing" not in text
    assert (workspace.figures / "confusion.png").exists() == scored


# What is drawn costs nothing


def broken(*_: object, **__: object) -> NoReturn:
    raise MemoryError("no canvas\nof that size")


@pytest.mark.parametrize("figure", ["gallery", "map", "sizes", "confusion", "training"])
def test_a_figure_that_fails_is_a_note(figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1), labels=list("abc") * 8)
    monkeypatch.setattr(figures, f"{figure}_figure", broken)
    evaluate(workspace, parameters)
    assert names(workspace.results) == FILES
    note = "could not be drawn (MemoryError: no canvas of that size)"
    assert note in workspace.summary.read_text()
    assert note in workspace.report.read_text()
    drawn = {"gallery", "map", "cluster_sizes", "confusion", "training", "neighbor_purity", "neighbors"}
    missing = "cluster_sizes" if figure == "sizes" else figure
    assert names(workspace.figures) == sorted(f"{name}.png" for name in drawn - {missing})


@pytest.mark.parametrize("part", ["purity_curves", "retrieved"])
def test_neighbors_that_cannot_be_drawn_are_a_note(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1), labels=list("abc") * 8)
    monkeypatch.setattr(f"conr.pipeline.neighbor_figures.{part}", broken)
    evaluate(workspace, parameters)
    assert "could not be drawn (MemoryError" in workspace.summary.read_text()
    assert (workspace.plots / "neighbor_purity.csv").read_text().startswith("neighbors,local,conaff")


def test_a_page_that_fails_is_a_short_page_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1))
    monkeypatch.setattr("conr.pipeline.report.cards", broken)
    evaluate(workspace, parameters)
    assert names(workspace.results) == FILES
    note = "The page is incomplete: it could not be made (MemoryError: no canvas of that size)."
    assert note in workspace.summary.read_text()
    page = workspace.report.read_text()
    assert note in page
    assert "<h2>Scores</h2>" in page


# Results that appear whole


@pytest.fixture
def done(tmp_path: Path) -> tuple[Workspace, Any]:
    """A workspace that was evaluated, and parameters that give other results."""
    workspace, parameters = embedded(tmp_path / "run", groups([12, 8, 4], noise=0.1), labels=list("abc") * 8)
    evaluate(workspace, parameters)
    for folder in (workspace.sweeps, workspace.ablation):
        folder.mkdir()
        (folder / "kept").touch()
    return workspace, parameters.changed({"clusters": 2})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failed_run_leaves_the_results_as_they_were(
    done: tuple[Workspace, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, other = done
    before = contents(workspace.results)

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("conr.report.drawings.save", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate(workspace, other)
    assert contents(workspace.results) == before
    monkeypatch.undo()
    monkeypatch.setattr(stage, "summary", broken)
    with pytest.raises(MemoryError):
        evaluate(workspace, other)
    assert contents(workspace.results) == before


def test_new_results_replace_all_old_ones_and_nothing_else(done: tuple[Workspace, Any]) -> None:
    workspace, other = done
    (workspace.figures / "of_an_older_version.png").touch()
    evaluate(workspace, other)
    assert names(workspace.results) == sorted([*FILES, "ablation", "sweeps"])
    assert names(workspace.sweeps) == names(workspace.ablation) == ["kept"]
    assert not (workspace.figures / "of_an_older_version.png").exists()
    assert np.load(workspace.centroids).shape == (2, 16)
    assert {row["cluster"] for row in table(workspace.assignments)} == {"0", "1"}


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_files_that_are_links_into_a_cache_are_never_written_to(done: tuple[Workspace, Any], link: Any) -> None:
    """DVC's cache.type hardlink or symlink."""
    workspace, other = done
    cache = workspace.root / "cache"
    shutil.copytree(workspace.results, cache)
    for path in [path for path in workspace.results.rglob("*") if path.is_file()]:
        path.unlink()
        link(cache / path.relative_to(workspace.results), path)
    before = contents(cache)
    evaluate(workspace, other)
    assert contents(cache) == before
    assert workspace.metrics.read_bytes() != before["metrics.json"]
    assert not [path for path in workspace.results.rglob("*") if path.is_symlink() and path.name != "kept"]


def test_the_record_goes_first_and_comes_last(done: tuple[Workspace, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any rename, the results are without a record, or of one run."""
    workspace, other = done
    renamed: list[str] = []
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        if target.parent == workspace.results:
            assert not (workspace.results / RECORD).exists()
            renamed.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    evaluate(workspace, other)
    assert renamed[-1] == RECORD
    assert sorted(renamed) == FILES


def test_what_a_killed_run_left_is_removed_once_it_is_old(done: tuple[Workspace, Any]) -> None:
    workspace, other = done
    old, young = (workspace.results / f"unfinished-{name}.tmp" for name in ("a", "b"))
    for folder in (old, young):
        (folder / "results").mkdir(parents=True)
    os.utime(old, (0, 0))
    evaluate(workspace, other)
    assert not old.exists()
    assert young.exists()


# Images that hide a fault


def test_images_of_a_single_color_and_equal_ones_are_listed(tmp_path: Path) -> None:
    files = [f"{number:02}.png" for number in range(24)]
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1), files=files)
    hidden = {"blank": list(range(12)), "duplicates": [(20, 3), (21, 3)]}
    write_store(workspace.store, load_manifest(workspace.store).model_copy(update=hidden))
    evaluate(workspace, parameters)
    blank = f"Images of a single color: 12: {', '.join(files[:10])} and 2 more."
    for text in (workspace.summary.read_text(), workspace.report.read_text()):
        assert blank in text
        assert "Images that equal an earlier one: 2: 20.png = 03.png, 21.png = 03.png." in text


def test_names_and_labels_that_begin_a_formula_are_text_in_the_table(tmp_path: Path) -> None:
    files = ["=1+2.png", "@x.png", "-1.png", *(f"{number}.png" for number in range(21))]
    labels = ["-1", "+1", "=x", *["cat"] * 21]
    workspace, parameters = embedded(tmp_path, groups([12, 8, 4], noise=0.1), labels=labels, files=files)
    evaluate(workspace, parameters)
    rows = table(workspace.assignments)
    assert [row["file"] for row in rows[:4]] == ["'=1+2.png", "'@x.png", "'-1.png", "0.png"]
    assert [row["label"] for row in rows[:4]] == ["'-1", "'+1", "'=x", "cat"]
    assert "&#39;=1+2.png" not in workspace.report.read_text()
