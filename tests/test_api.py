"""Clustering in one call: a folder or an array in, a finished run out; and new images into its clusters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from colored import colored_images, quick
from PIL import Image
from recorder import Recorder
from small_networks_onnx import write_network

import conr
from conr.api import Result, cluster
from conr.data.store import open_store
from conr.errors import UserError
from conr.observer import Observer
from conr.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Run:
    """A run on a folder of images, of which one cannot be read."""

    folder: Path
    result: Result
    recorder: Recorder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, recorder = tmp_path_factory.mktemp("photos"), Recorder()
    for number, image in enumerate(colored_images()[0][:40]):
        path = folder / f"{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "0" / "torn.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image by its name")
    workspace = Workspace.at(tmp_path_factory.mktemp("run"))
    parameters = quick().changed({"clusters": 7, "seeds": [4, 5]})
    result = cluster(folder, 3, workspace, parameters=parameters, observer=recorder)
    return Run(folder, result, recorder)


FILES = [f"{parity}/{number:02d}.png" for parity in (0, 1) for number in range(parity, 40, 2)]


def test_a_folder_is_clustered_in_the_order_of_its_files(run: Run) -> None:
    result = run.result
    assert result.files == FILES
    assert result.assignments.shape == (40,)
    assert result.assignments.dtype == np.int64
    sizes = np.bincount(result.assignments, minlength=3)
    assert len(sizes) == 3  # whatever the parameters say
    assert (np.diff(sizes) <= 0).all()
    assert result.embeddings.shape == (40, 16)
    np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-5)
    assert "silhouette" in result.scores
    assert "acc" not in result.scores


def test_the_run_is_in_its_workspace_with_one_seed(run: Run) -> None:
    workspace = run.result.workspace
    assert workspace.report.is_file()
    assert workspace.finetuned(0).weights.is_file()
    assert not workspace.finetuned(4).weights.exists()
    assert {file for file, _ in open_store(workspace.store).manifest.skipped} == {"0/torn.png", "notes.txt"}


def test_the_observer_is_notified_of_all_stages_in_order(run: Run) -> None:
    assert [name.split()[0] for name, _, _ in run.recorder.tasks] == [
        "prepare",
        "pretrain",
        "finetune",
        "embed",
        "embed",
        "evaluate",
    ]
    assert len(run.recorder.rows) == 4
    for name, total, done in run.recorder.tasks[:3]:
        assert (done, total) == (0, {"prepare": 41, "pretrain": 4, "finetune": 4}[name])


def test_new_images_are_assigned_and_unreadable_ones_are_not(run: Run) -> None:
    found = run.result.assign(run.folder)
    expected = np.insert(run.result.assignments, 20, -1)  # behind the others of its folder
    np.testing.assert_array_equal(found, expected)
    pixels = np.asarray(open_store(run.result.workspace.store).images)
    np.testing.assert_array_equal(run.result.assign(pixels), run.result.assignments)


def test_a_folder_without_images_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path} "):
        run.result.assign(tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path} "):
        cluster(tmp_path, 3, parameters=quick())


def test_what_is_no_folder_and_no_array_of_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/nowhere .*name a folder"):
        cluster(tmp_path / "nowhere", 3)
    with pytest.raises(UserError, match=r"^images .*\(12,\) uint8"):
        cluster(np.zeros(12, dtype=np.uint8), 3)


def test_labels_go_with_an_array_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^labels "):
        cluster(tmp_path, 3, parameters=quick(), labels=[0, 1])


class StopError(Exception):
    """Enough is known."""


class StopBeforeTraining(Observer):
    """Ends a run once the images are packed."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[None]:
        if name.startswith(("pretrain", "features")):
            raise StopError
        yield


@pytest.mark.parametrize(("side", "size"), [(8, 8), (40, 40), (96, 96), (250, 224)])
def test_small_images_keep_their_size_and_large_ones_are_reduced(side: int, size: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (260, side, side, 3), dtype=np.uint8)
    with pytest.raises(StopError):
        cluster(images, 3, Workspace.at(tmp_path), observer=StopBeforeTraining())
    assert open_store(tmp_path / "artifacts/store").manifest.image_size == size


@pytest.mark.filterwarnings("ignore:network.backbone:conr.errors.Note")
def test_without_a_workspace_the_run_lives_as_long_as_its_result(tmp_path: Path) -> None:
    images, colors = colored_images()
    backbone = f"onnx:{write_network(tmp_path / 'tiny.onnx')}"
    parameters = quick().changed({"clusters": 4, "network.backbone": backbone, "finetune.epochs": 0})
    with pytest.raises(UserError, match=r"61 .*60"):
        conr.cluster(images, 3, parameters=quick(), labels=[*colors, 0])
    result = conr.cluster(images, parameters=parameters, labels=colors.tolist())
    assert {"acc", "nmi", "ari"} <= result.scores.keys()
    assert len(np.load(result.workspace.centroids)) == 4, "as the parameters say"
    root = result.workspace.root
    assert (root / "results/report.html").is_file()
    del result
    assert not root.exists()
