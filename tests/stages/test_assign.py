"""New images go to the clusters of the last run, broken ones are named, and parts that do not belong together too."""

import csv
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from conr.data.items import NOT_AN_IMAGE
from conr.errors import UserError
from conr.export import INPUT, OUTPUT, export, open_session
from conr.networks import Encoder, Network, mlp
from conr.progress import silent
from conr.quantisation import quantise
from stages import assign
from stages.paths import CENTROIDS, CLUSTERED, ENCODER

SIZE, DIMENSION, CLUSTERS = 8, 16, 3
NAMES = ["a.png", "b.png", "deep/d.png", "deep/er/c.png", "e.png", "f.png", "g.png", "h.png"]


@dataclass(frozen=True)
class Project:
    """A finished run in the current folder, and images that it has not seen."""

    images: Path
    pixels: dict[str, NDArray[np.uint8]]
    output: Path

    def assign(self, sort_into: Path | None = None) -> str:
        return assign.run(self.images, self.output, sort_into, "cpu", silent)

    def rows(self) -> dict[str, dict[str, str]]:
        with self.output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row["file"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = Encoder("resnet18", 4, "cifar")
    network = Network(encoder, mlp(encoder.features, 16, DIMENSION)).train()
    with torch.no_grad():
        network(torch.rand(16, 3, SIZE, SIZE))
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    export(network, SIZE, path, {"image_size": SIZE, "fit": "crop"})
    return path


def embedded(encoder: Path, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = open_session(encoder, "cpu").run([OUTPUT], {INPUT: np.stack(pixels)})[0]
    return rows


def clustered_by(encoder: Path) -> None:
    """Say that the centroids belong to an encoder, as evaluate does."""
    CLUSTERED.write_text(json.dumps({"encoder": hashlib.sha256(encoder.read_bytes()).hexdigest()}))


@pytest.fixture
def project(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    pixels = {}
    for name in NAMES:
        # Of different brightness, so that they do not all go to one cluster.
        pixels[name] = (generator.integers(0, 256, (SIZE, SIZE, 3)) * generator.random(3)).astype(np.uint8)
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[name]).save(tmp_path / "new" / name)
    ENCODER.parent.mkdir()
    ENCODER.symlink_to(encoder)
    CENTROIDS.parent.mkdir()
    np.save(CENTROIDS, embedded(encoder, [pixels[name] for name in ("a.png", "deep/d.png", "h.png")]))
    clustered_by(encoder)
    return Project(tmp_path / "new", pixels, tmp_path / "results" / "table.csv")


def nearest(encoder: Path, pixels: dict[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.int64]]:
    """File → clusters from the nearest to the farthest."""
    distances = np.linalg.norm(embedded(encoder, list(pixels.values()))[:, None] - np.load(CENTROIDS)[None], axis=2)
    return dict(zip(pixels, distances.argsort(axis=1), strict=True))


def test_every_image_goes_to_its_nearest_centroid(project: Project, encoder: Path) -> None:
    summary = project.assign()
    rows = project.rows()
    assert list(rows) == NAMES
    for name, order in nearest(encoder, project.pixels).items():
        assert (int(rows[name]["cluster"]), int(rows[name]["next_cluster"])) == (order[0], order[1]), name
        assert 0 <= float(rows[name]["own_distance"]) <= float(rows[name]["next_distance"])
        assert 0 <= float(rows[name]["boundary_ratio"]) <= 1
    for name, cluster in (("a.png", "0"), ("deep/d.png", "1"), ("h.png", "2")):
        assert rows[name]["cluster"] == cluster
        assert float(rows[name]["own_distance"]) == pytest.approx(0, abs=2e-3)
    assert summary == f"8 images in 3 clusters, listed in {project.output}"


def test_an_int8_encoder_sorts_as_well_and_is_named(project: Project, encoder: Path) -> None:
    project.assign()
    expected = {name: row["cluster"] for name, row in project.rows().items()}
    ENCODER.unlink()
    quantise(encoder, np.stack(list(project.pixels.values())), ENCODER)
    clustered_by(ENCODER)
    assert project.assign().endswith("by an int8 encoder (extract.precision)")
    assert {name: row["cluster"] for name, row in project.rows().items()} == expected


def test_images_of_another_size_are_fitted_as_the_encoder_was_taught(project: Project) -> None:
    wide = np.zeros((SIZE, 3 * SIZE, 3), dtype=np.uint8)
    wide[:, SIZE : 2 * SIZE] = project.pixels["deep/d.png"]  # crop leaves exactly this
    Image.fromarray(wide).save(project.images / "wide.png")
    project.assign()
    rows = project.rows()
    assert {**rows["wide.png"], "file": ""} == {**rows["deep/d.png"], "file": ""}


def test_images_are_copied_into_a_folder_per_cluster(project: Project, encoder: Path, tmp_path: Path) -> None:
    summary = project.assign(sort_into=tmp_path / "sorted")
    expected = {f"{order[0]}/{name}" for name, order in nearest(encoder, project.pixels).items()}
    copies = {path.relative_to(tmp_path / "sorted").as_posix(): path for path in (tmp_path / "sorted").rglob("*.png")}
    assert copies.keys() == expected
    for name, copy in copies.items():
        assert copy.read_bytes() == (project.images / name.partition("/")[2]).read_bytes()
    assert sorted(path.relative_to(project.images).as_posix() for path in project.images.rglob("*.png")) == NAMES
    assert summary.endswith(f"copied into one folder per cluster in {tmp_path}/sorted")


@pytest.mark.parametrize(
    ("output", "sort_into", "message"),
    [
        ("new", None, "--output .*/new is a folder; name a file, such as .*/new/assignments.csv"),
        ("file/table.csv", None, "--output .*/file/table.csv: .*/file is no folder that can be written to"),
        ("locked/a/table.csv", None, "--output .*: .*/locked is no folder that can be written to"),
        ("table.csv", "full", "--sort-into .*/full is not empty; name a new folder"),
        ("table.csv", "file", "--sort-into .*/file: .*/file is no folder that can be written to"),
        ("table.csv", "locked/a", "--sort-into .*: .*/locked is no folder that can be written to"),
        ("table.csv", "new", "--sort-into .*/new lies in .*/new, whose images are sorted; name a folder outside"),
        ("table.csv", "link/sorted", "--sort-into .*/link/sorted lies in .*/new"),
    ],
)
def test_places_that_cannot_be_written_to_are_refused_before_any_image_is_read(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, sort_into: str | None, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("new")
    for folder in ("full/0", "locked"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")  # root may write anywhere
    monkeypatch.setattr(assign, "open_session", lambda *_: pytest.fail("it went on"))
    target = None if sort_into is None else tmp_path / sort_into
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        assign.run(project.images, tmp_path / output, target, "cpu", silent)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_sorted_into(project: Project, tmp_path: Path) -> None:
    (tmp_path / "sorted").mkdir()
    project.assign(sort_into=tmp_path / "sorted")
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == len(NAMES)


def test_folders_are_named_alike_whatever_clusters_come(project: Project, tmp_path: Path) -> None:
    few = np.load(CENTROIDS)
    np.save(CENTROIDS, np.concatenate([few, -few, -few, -few]))  # 12 clusters, of which these images use the first
    project.assign(sort_into=tmp_path / "sorted")
    assert {path.name for path in (tmp_path / "sorted").iterdir()} == {"00", "01", "02"}


def test_a_broken_image_is_reported_and_the_others_assigned(project: Project, tmp_path: Path) -> None:
    (project.images / "c-torn.png").write_bytes((project.images / "a.png").read_bytes()[:60])
    (project.images / "b-empty.png").touch()
    summary = project.assign(sort_into=tmp_path / "sorted")
    assert list(project.rows()) == NAMES
    assert summary.splitlines()[0].startswith("8 images in 3 clusters")
    assert summary.splitlines()[-1] == "2 images cannot be read, the first: b-empty.png: empty file"
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 8


def test_files_that_were_skipped_are_counted_and_the_first_named(project: Project) -> None:
    for name in ("notes.txt", "deep/film.mp4", "raw.cr2", "z.heic"):
        (project.images / name).touch()
    assert project.assign().splitlines()[1:] == [
        "4 other files skipped:",
        *(f"  {name}: {NOT_AN_IMAGE}" for name in ("deep/film.mp4", "notes.txt", "raw.cr2")),
        "  … and 1 more",
    ]


def test_a_name_that_is_not_unicode_goes_out_as_it_came_in(project: Project) -> None:
    name = os.fsdecode("Käfer.png".encode("latin-1"))
    try:
        (project.images / name).write_bytes((project.images / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode only")
    project.assign()
    assert project.rows()[name]["cluster"] == "0"
    assert "Käfer.png".encode("latin-1") in project.output.read_bytes()


def test_images_that_are_all_broken_are_an_error(project: Project, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "broken" / name).touch()
    with pytest.raises(UserError, match=r"broken: none of 2 images can be read; the first: a\.jpg: empty file"):
        assign.run(tmp_path / "broken", project.output, None, "cpu", silent)
    assert not project.output.exists()


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_images_is_an_error(project: Project, tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}/none (is not a folder|holds no image)"):
        assign.run(tmp_path / "none", project.output, None, "cpu", silent)


def test_without_an_encoder_the_error_says_what_to_run(project: Project) -> None:
    ENCODER.unlink()
    with pytest.raises(UserError, match=f"{ENCODER} does not exist; run conr extract first"):
        project.assign()


def test_without_centroids_the_error_says_what_to_run(project: Project) -> None:
    CENTROIDS.unlink()
    with pytest.raises(UserError, match=f"{CENTROIDS} does not exist; run conr evaluate first"):
        project.assign()


@pytest.mark.parametrize("size", [0, 40, 150])
def test_truncated_centroids_are_named(project: Project, size: int) -> None:
    CENTROIDS.write_bytes(CENTROIDS.read_bytes()[:size])
    with pytest.raises(UserError, match=f"{CENTROIDS} is not whole"):
        project.assign()


def test_centroids_of_another_encoder_of_the_same_dimension_are_refused(project: Project) -> None:
    other = ENCODER.read_bytes() + b"\x00"
    CLUSTERED.write_text(json.dumps({"encoder": hashlib.sha256(other).hexdigest()}))
    message = f"{CENTROIDS} belongs to another encoder than {ENCODER}; run conr evaluate, or dvc repro"
    with pytest.raises(UserError, match=message):
        project.assign()
    assert not project.output.exists()


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_results_that_do_not_name_their_encoder_are_refused(project: Project, content: str | None) -> None:
    CLUSTERED.unlink()
    if content is not None:
        CLUSTERED.write_text(content)
    with pytest.raises(UserError, match=rf"{CLUSTERED}, which names the encoder .*; run conr evaluate again"):
        project.assign()


def test_centroids_of_another_dimension_are_refused(project: Project) -> None:
    np.save(CENTROIDS, np.zeros((CLUSTERS, DIMENSION + 1), dtype=np.float32))
    with pytest.raises(UserError, match=f"{ENCODER} and {CENTROIDS} do not belong together; run dvc repro again"):
        project.assign()


def test_an_encoder_that_does_not_say_how_images_were_fitted_is_refused(project: Project) -> None:
    graph = onnx.load(ENCODER)
    onnx.helper.set_model_props(graph, {"conr": '{"image_size": 8}'})
    ENCODER.unlink()
    onnx.save(graph, ENCODER)
    clustered_by(ENCODER)
    with pytest.raises(UserError, match="do not belong together"):
        project.assign()
