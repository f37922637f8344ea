"""conr cluster: what is planned for a folder of images, and what is made of it by the real command."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from colored import COLORS, colored_images
from forked import run_conr, start_conr
from PIL import Image
from project import refused, run, table
from ruamel.yaml import YAML
from small_networks_onnx import write_network

from conr.errors import UserError
from conr.pipeline.cluster_folder import Plan, plan, prepare_project
from conr.pipeline.workspace import Workspace

COUNT = 60


def write_images(folder: Path, size: int = 40) -> Path:
    """60 photos of three colors and several sizes, a folder for each color."""
    images, colors = colored_images()
    for number, (pixels, color) in enumerate(zip(images, colors, strict=True)):
        path = folder / "rgb"[color] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((size + number % 3, size), Image.Resampling.NEAREST).save(path)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("somewhere") / "my photos")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that somebody brings: it knows colors, and no more."""
    return f"onnx:{write_network(tmp_path_factory.mktemp('networks') / 'tiny.onnx')}"


@pytest.fixture(scope="module")
def clustered(photos: Path, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which conr cluster has been run, and what it printed."""
    here = tmp_path_factory.mktemp("here")
    done = run(here, "conr", "cluster", str(photos), "--clusters", "3", "--backbone", backbone, "--labels", "parent")
    return here / "conr-my photos", done


def planned(photos: Path, backbone: str, tmp_path: Path, **arguments: object) -> Plan:
    return plan(photos, output=tmp_path / "project", backbone=backbone, **arguments)  # type: ignore[arg-type]


def test_the_plan_fits_the_images_and_writes_nothing(photos: Path, backbone: str, tmp_path: Path) -> None:
    found = planned(photos, backbone, tmp_path, clusters="2-5")
    assert (found.images, found.typical) == (COUNT, (41, 40))
    assert found.parameters.prepare.image_size == 32, "the largest size that is not above 40"
    assert found.parameters.prepare.path == str(photos.resolve())
    assert found.parameters.clusters == "2-5"
    assert found.parameters.network.backbone == "onnx:backbones/tiny.onnx"
    assert found.parameters.evaluate.method == "graph"
    assert found.seconds is not None
    assert min(found.seconds.values()) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("refine", "epochs", "views"), [(False, 0, 0), (True, 12, 4)])
def test_heads_are_trained_only_on_request(
    photos: Path, backbone: str, tmp_path: Path, refine: bool, epochs: int, views: int
) -> None:
    parameters = planned(photos, backbone, tmp_path, refine=refine).parameters
    assert (parameters.finetune.epochs, parameters.pretrain.cached_views) == (epochs, views)
    assert parameters.clusters == "auto"


def test_from_scratch_it_is_the_paper_s_way(photos: Path, tmp_path: Path) -> None:
    found = planned(photos, "scratch", tmp_path)
    assert found.parameters.network.backbone == "scratch"
    assert found.parameters.finetune.epochs > 0
    assert found.seconds is None


def test_a_project_keeps_what_its_owner_has_changed(photos: Path, backbone: str, tmp_path: Path) -> None:
    first = planned(photos, backbone, tmp_path, clusters="7")
    prepare_project(first, backbone)
    params = first.project / "params.yaml"
    assert (first.project / "backbones/tiny.onnx").is_file()
    assert "# what is searched" not in params.read_text()
    params.write_text(params.read_text().replace("gallery: 24", "gallery: 5   # fewer"))
    again = plan(photos, output=first.project)
    assert again.resumes
    assert (again.changes, again.parameters.clusters, again.parameters.evaluate.gallery) == ({}, 7, 5)
    prepare_project(plan(photos, "9", first.project), None)
    assert YAML(typ="safe").load(params)["clusters"] == 9
    assert "gallery: 5   # fewer" in params.read_text(), "comments stay"


def test_the_project_lies_beside_a_folder_that_one_is_in(
    photos: Path, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos / "r")
    assert plan(photos, backbone=backbone).project == photos.parent / "conr-my photos"
    with pytest.raises(UserError, match=r"--output .* lies in"):
        plan(photos, output=photos / "x", backbone=backbone)


def test_in_the_project_of_the_folder_that_project_is_used(
    photos: Path, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(photos, backbone, tmp_path)
    prepare_project(made, backbone)
    monkeypatch.chdir(made.project)
    assert (plan(photos).project, plan(photos).resumes) == (made.project, True)
    other = write_images(tmp_path / "other")
    assert plan(other, backbone=backbone).project == made.project / "conr-other"
    (made.project / "params.yaml").write_text("of: another program")
    assert plan(photos, backbone=backbone).project == made.project / "conr-my photos"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"clusters": "1"}, "clusters = .* should be a number of at least 2, auto, or a range"),
        ({"clusters": "many"}, "clusters = 'many' should be a number"),
        ({"clusters": "9-3"}, "clusters = '9-3' should be"),
        ({"backbone": "onnx:nowhere.onnx"}, "nowhere.onnx does not exist"),
        ({"backbone": "efficientnet-lite1"}, "did you mean efficientnet-lite"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    photos: Path, tmp_path: Path, arguments: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        plan(photos, output=tmp_path / "project", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_something_else_is_left_alone(photos: Path, backbone: str, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/letter.txt").touch()
    with pytest.raises(UserError, match="is no project of conr; name another folder with --output"):
        planned(photos, backbone, tmp_path)
    other = write_images(tmp_path / "other")
    made = plan(photos, output=tmp_path / "made", backbone=backbone)
    prepare_project(made, backbone)
    with pytest.raises(UserError, match="is the project of another folder"):
        plan(other, output=made.project)


# The real command


def test_one_command_groups_a_folder(clustered: tuple[Path, str]) -> None:
    project, said = clustered
    assert "60 images in" in said
    assert "most of it for" in said
    assert "60 images in 3 groups\n" in said
    assert f"page    {project / 'results/report.html'}\n" in said
    rows = table(project / "results/assignments.csv")
    assert len(rows) == COUNT
    assert json.loads((project / "results/metrics.json").read_text())["acc"] == 1.0
    assert len({(row["label"], row["cluster"]) for row in rows}) == len(COLORS)
    assert not (project / ".git").exists()
    assert not (project / "results/figures/training.png").exists(), "nothing was trained"
    assert {"kmeans", "graph"} <= json.loads((project / "results/metrics.json").read_text()).keys()
    assert np.load(project / "results/ballots.npy").shape == (COUNT, 2 * 3 + 2), "conr assign needs them"
    assert "ballots.npy" in json.loads((project / "results/record.json").read_text())["made"]


def test_run_again_it_computes_nothing(clustered: tuple[Path, str], photos: Path) -> None:
    project, _ = clustered
    before = (project / "results/report.html").stat().st_mtime_ns
    done = run_conr(project.parent, "cluster", str(photos))
    assert done.returncode == 0, done.stderr
    assert (project / "results/report.html").stat().st_mtime_ns == before
    assert "evaluate (" not in done.stdout


def test_other_numbers_are_compared_in_seconds(clustered: tuple[Path, str], tmp_path: Path) -> None:
    project, _ = clustered
    own = tmp_path / "copy"
    run(tmp_path, "cp", "-r", str(project), str(own))
    said = run(own, "conr", "clusters", "2-6")
    assert "clusters proposed (" in said
    assert {path.name for path in Workspace.at(own).proposals.iterdir()} == {"clusters.json", "clusters.png"}
    assert "Set clusters" in " ".join(run_conr(own, "clusters", "--help").stdout.split())
    assert run_conr(own, "clusters", "5").returncode == 0
    assert len(np.load(own / "results/centroids.npy")) == 5


def test_a_broken_image_is_skipped_and_too_many_stop_it_with_exit_code_2(tmp_path: Path, backbone: str) -> None:
    folder = write_images(tmp_path / "photos")
    for number in range(20):
        (folder / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    said = refused(tmp_path, "cluster", "photos", "--clusters", "3", "--backbone", backbone)
    assert "prepare.max_broken" in said
    assert not (tmp_path / "conr-photos").exists(), "nothing was made, and nothing is left"


def test_killed_in_the_middle_it_is_resumed_by_the_same_command(tmp_path: Path, backbone: str) -> None:
    write_images(tmp_path / "photos")
    command = ["cluster", "photos", "--clusters", "3", "--backbone", backbone]
    process = start_conr(tmp_path, *command, output=tmp_path / "output", errors=tmp_path / "errors")
    assert process.pid is not None
    while not (tmp_path / "output").exists() or "\npretrain (" not in (tmp_path / "output").read_text():
        process.join(timeout=0.02)
        assert process.exitcode is None, (tmp_path / "errors").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    done = run_conr(tmp_path, "cluster", "photos")
    assert done.returncode == 0, done.stderr
    assert "prepare (" not in done.stdout, "what is whole is kept"
    assert (tmp_path / "conr-photos/results/report.html").is_file()
