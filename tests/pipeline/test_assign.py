"""New images go to the clusters of the last run, broken ones are named, and parts that do not belong together too."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from project import table

from conr.data.items import OTHER_SUFFIX
from conr.embedding.engines.settings import LOCAL
from conr.embedding.export import export
from conr.embedding.int8 import quantize
from conr.embedding.session import INPUT, OUTPUT, Properties, open_session
from conr.errors import UserError
from conr.files import save_array, sha256_of
from conr.observer import SILENT
from conr.pipeline import assign as assigning
from conr.pipeline.assign import assign_folder
from conr.pipeline.records import write_record
from conr.pipeline.workspace import RECORD, Workspace
from conr.stages import sorting
from conr.training.weights import ModelSpec

SIZE, DIMENSION, CLUSTERS = 8, 16, 3
NAMES = ["a.png", "b.png", "deep/d.png", "deep/er/c.png", "e.png", "f.png", "g.png", "h.png"]


@dataclass(frozen=True)
class Project:
    """A finished run, and images that it has not seen."""

    workspace: Workspace
    images: Path
    pixels: dict[str, NDArray[np.uint8]]
    output: Path

    def assign(self, sort_into: Path | None = None) -> str:
        return sorting.assign(
            self.workspace, self.images, self.output, sort_into, "none", "cpu", None, False, LOCAL, SILENT
        )

    def rows(self) -> dict[str, dict[str, str]]:
        return {row["file"]: row for row in table(self.output)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = ModelSpec(width=4, hidden=16, dimension=DIMENSION).build(seed=0).online.train()
    with torch.no_grad():
        network(torch.rand(16, 3, SIZE, SIZE))
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    export(network, SIZE, path, Properties(image_size=SIZE, fit="crop"))
    return path


def embedded(encoder: Path, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = open_session(encoder, "cpu").run([OUTPUT], {INPUT: np.stack(pixels)})[0]
    return rows


def record(workspace: Workspace, sha256: str) -> None:
    """Say which encoder the centroids belong to, as evaluate does."""
    write_record(workspace.results, [workspace.centroids], [0], {"encoder": sha256})


@pytest.fixture
def project(encoder: Path, tmp_path: Path) -> Project:
    workspace = Workspace.at(tmp_path / "run")
    generator = np.random.default_rng(0)
    pixels = {}
    for name in NAMES:
        # Of different brightness, so that they do not all go to one cluster.
        pixels[name] = (generator.integers(0, 256, (SIZE, SIZE, 3)) * generator.random(3)).astype(np.uint8)
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[name]).save(tmp_path / "new" / name)
    workspace.encoder.parent.mkdir(parents=True)
    workspace.encoder.symlink_to(encoder)
    save_array(workspace.centroids, embedded(encoder, [pixels[name] for name in ("a.png", "deep/d.png", "h.png")]))
    record(workspace, sha256_of(encoder))
    return Project(workspace, tmp_path / "new", pixels, tmp_path / "results" / "table.csv")


def nearest(project: Project) -> dict[str, NDArray[np.int64]]:
    """File → clusters from the nearest to the farthest."""
    embeddings = embedded(project.workspace.encoder, list(project.pixels.values()))
    distances = np.linalg.norm(embeddings[:, None] - np.load(project.workspace.centroids)[None], axis=2)
    return dict(zip(project.pixels, distances.argsort(axis=1), strict=True))


def test_every_image_goes_to_its_nearest_centroid(project: Project) -> None:
    summary = project.assign()
    rows = project.rows()
    assert list(rows) == NAMES
    for name, order in nearest(project).items():
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
    project.workspace.encoder.unlink()
    quantize(encoder, np.stack(list(project.pixels.values())), project.workspace.encoder)
    record(project.workspace, sha256_of(project.workspace.encoder))
    assert project.assign().endswith("by an encoder in int8")
    assert {name: row["cluster"] for name, row in project.rows().items()} == expected


def test_images_of_another_size_are_fitted_as_the_encoder_was_taught(project: Project) -> None:
    wide = np.zeros((SIZE, 3 * SIZE, 3), dtype=np.uint8)
    wide[:, SIZE : 2 * SIZE] = project.pixels["deep/d.png"]  # crop leaves exactly this
    Image.fromarray(wide).save(project.images / "wide.png")
    project.assign()
    rows = project.rows()
    assert {**rows["wide.png"], "file": ""} == {**rows["deep/d.png"], "file": ""}


def test_images_are_copied_into_a_folder_per_cluster(project: Project, tmp_path: Path) -> None:
    summary = project.assign(sort_into=tmp_path / "sorted")
    expected = {f"{order[0]}/{name}" for name, order in nearest(project).items()}
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
        ("file/table.csv", None, "--output .*/file/table.csv: cannot write to .*/file;"),
        ("locked/a/table.csv", None, "--output .*: cannot write to .*/locked;"),
        ("table.csv", "file", "--sort-into .*/file: cannot write to .*/file;"),
        ("table.csv", "locked/a", "--sort-into .*: cannot write to .*/locked;"),
        ("table.csv", "new", "--sort-into .*/new lies in .*/new, whose images are sorted; name a folder outside"),
        ("table.csv", "link/sorted", "--sort-into .*/link/sorted lies in .*/new"),
    ],
)
def test_targets_that_cannot_be_written_to_are_refused_before_any_image_is_read(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, sort_into: str | None, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("new")
    for folder in ("locked",):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")  # root may write anywhere
    monkeypatch.setattr(assigning, "open_encoder", lambda *_: pytest.fail("nothing was refused"))
    target = None if sort_into is None else tmp_path / sort_into
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        assign_folder(project.workspace, project.images, tmp_path / output, target, "cpu")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_sorted_into(project: Project, tmp_path: Path) -> None:
    (tmp_path / "sorted").mkdir()
    project.assign(sort_into=tmp_path / "sorted")
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == len(NAMES)


def test_folders_are_named_alike_whatever_clusters_come(project: Project, tmp_path: Path) -> None:
    few = np.load(project.workspace.centroids)
    # 12 clusters, of which these images use the first.
    np.save(project.workspace.centroids, np.concatenate([few, -few, -few, -few]))
    record(project.workspace, sha256_of(project.workspace.encoder))
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
    for name in ("notes.txt", "deep/film.mp4", "raw.cr2", "z.svg"):
        (project.images / name).touch()
    assert project.assign().splitlines()[1:] == [
        "4 other files skipped:",
        *(f"  {name}: {OTHER_SUFFIX}" for name in ("deep/film.mp4", "notes.txt", "raw.cr2")),
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
        assign_folder(project.workspace, tmp_path / "broken", project.output, device="cpu")
    assert not project.output.exists()


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_images_is_an_error(project: Project, tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}/none (is not a folder|holds no image)"):
        assign_folder(project.workspace, tmp_path / "none", project.output, device="cpu")


def test_without_an_encoder_the_error_says_what_to_run(project: Project) -> None:
    project.workspace.encoder.unlink()
    with pytest.raises(UserError, match=f"{project.workspace.encoder} does not exist; run conr extract first"):
        project.assign()


def test_without_centroids_the_error_says_what_to_run(project: Project) -> None:
    project.workspace.centroids.unlink()
    with pytest.raises(UserError, match=f"^{project.workspace.centroids} is missing .*; run conr evaluate"):
        project.assign()


@pytest.mark.parametrize("size", [0, 40, 150])
def test_truncated_centroids_are_named(project: Project, size: int) -> None:
    centroids = project.workspace.centroids
    centroids.write_bytes(centroids.read_bytes()[:size])
    with pytest.raises(UserError, match=f"^{centroids} is missing or damaged .*; run conr evaluate"):
        project.assign()


def test_centroids_that_are_no_float32_matrix_are_named(project: Project) -> None:
    for wrong in (np.zeros((CLUSTERS, DIMENSION)), np.zeros(DIMENSION, dtype=np.float32)):
        np.save(project.workspace.centroids, wrong)
        with pytest.raises(UserError, match=f"^{project.workspace.centroids} holds .*, not a float32 matrix"):
            project.assign()


def test_centroids_of_another_encoder_of_the_same_dimension_are_refused(project: Project) -> None:
    record(project.workspace, "of another one")
    message = f"^{project.workspace.results} was made from another encoder: of anoth then, .* now; run conr evaluate"
    with pytest.raises(UserError, match=message):
        project.assign()
    assert not project.output.exists()


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_results_that_do_not_name_their_encoder_are_refused(project: Project, content: str | None) -> None:
    named = project.workspace.results / RECORD
    named.unlink()
    if content is not None:
        named.write_text(content)
    with pytest.raises(UserError, match=rf"^{named} is missing or damaged .*; run conr evaluate, or dvc repro$"):
        project.assign()


def test_centroids_of_another_dimension_are_refused(project: Project) -> None:
    workspace = project.workspace
    np.save(workspace.centroids, np.zeros((CLUSTERS, DIMENSION + 1), dtype=np.float32))
    record(workspace, sha256_of(workspace.encoder))
    with pytest.raises(UserError, match=f"^{workspace.encoder} and {workspace.centroids} do not match; run "):
        project.assign()


def test_an_encoder_that_does_not_say_how_images_were_fitted_is_refused(project: Project) -> None:
    file = project.workspace.encoder
    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, {"conr": '{"image_size": 8}'})
    file.unlink()
    onnx.save(graph, file)
    record(project.workspace, sha256_of(file))
    with pytest.raises(UserError, match="do not match"):
        project.assign()
