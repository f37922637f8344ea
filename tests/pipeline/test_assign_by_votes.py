"""New images and graph clusters: by the votes of the run's own images, with the clusters' names, copied or linked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from clustered_run import finish, packed_photos, write_photos
from project import table

from conr.clustering.votes import assign_by_neighbors
from conr.embedding.session import INPUT, OUTPUT, open_session
from conr.errors import UserError
from conr.files import sha256_of
from conr.pipeline.assign import assign_folder, open_encoder
from conr.pipeline.records import write_record
from conr.pipeline.renaming import name_clusters
from conr.pipeline.workspace import Workspace

SEEN = [f"{number:02}.png" for number in range(30)]
CLUSTERS = {name: number % 3 for number, name in enumerate(SEEN)}  # nothing that centroids would find


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", SEEN)
    return tmp_path / "photos"


@pytest.fixture
def run(encoder: Path, photos: Path, tmp_path: Path) -> Workspace:
    workspace = packed_photos(tmp_path / "run", photos)
    finish(workspace, encoder, CLUSTERS)
    return workspace


def test_the_run_s_own_images_get_exactly_their_clusters(run: Workspace, photos: Path, tmp_path: Path) -> None:
    assign_folder(run, photos, tmp_path / "table.csv", device="cpu")
    rows = table(tmp_path / "table.csv")
    assert {row["file"]: int(row["cluster"]) for row in rows} == CLUSTERS
    assert {row["file"]: row for row in rows} == {row["file"]: row for row in table(run.assignments)}
    write_record(run.results, [run.centroids], [0], {"encoder": sha256_of(run.encoder)}, method="kmeans")
    assign_folder(run, photos, tmp_path / "table.csv", device="cpu")
    assert {row["file"]: int(row["cluster"]) for row in table(tmp_path / "table.csv")} != CLUSTERS


def test_new_images_get_the_clusters_that_the_nearest_images_vote_for(run: Workspace) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    encoder = open_encoder(run, "cpu")
    embeddings = open_session(run.encoder, "cpu").run([OUTPUT], {INPUT: pixels})[0]
    expected, _ = assign_by_neighbors(embeddings, np.load(run.embeddings(0)), np.array(list(CLUSTERS.values())), 3)
    found = encoder.assign(embeddings)
    np.testing.assert_array_equal(found.clusters, expected)
    distances = np.linalg.norm(embeddings[:, None] - encoder.centroids[None], axis=2)
    np.testing.assert_allclose(found.own_distance, distances[np.arange(20), expected], atol=1e-5)
    assert (found.next_cluster != found.clusters).all()


def test_ballots_of_the_graph_take_the_place_of_votes(run: Workspace, photos: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ballots = random.random((len(SEEN), 8)).astype(np.float32)
    np.save(run.ballots, ballots)
    write_record(run.results, [run.centroids, run.ballots], [0], {"encoder": sha256_of(run.encoder)}, method="graph")
    embeddings = random.normal(size=(40, np.load(run.centroids).shape[1])).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    known = np.load(run.embeddings(0)), np.array(list(CLUSTERS.values())), 3
    found = open_encoder(run, "cpu").assign(embeddings).clusters
    np.testing.assert_array_equal(found, assign_by_neighbors(embeddings, *known, ballots=ballots)[0])
    assert (found != assign_by_neighbors(embeddings, *known)[0]).any()
    assign_folder(run, photos, tmp_path / "table.csv", device="cpu")
    assert {row["file"]: int(row["cluster"]) for row in table(tmp_path / "table.csv")} == CLUSTERS
    np.save(run.ballots, ballots[::-1])
    with pytest.raises(UserError, match=f"^{run.ballots} is missing or damaged"):
        open_encoder(run, "cpu")


@pytest.mark.parametrize("link", ["none", "hard", "symbolic"])
def test_names_are_in_the_table_and_in_the_folders(run: Workspace, photos: Path, tmp_path: Path, link: str) -> None:
    name_clusters(run, {1: "red shoes"})
    new = tmp_path / "new"
    shutil.copytree(photos, new)
    assign_folder(run, new, tmp_path / "t.csv", tmp_path / "sorted", "cpu", link=link)  # type: ignore[arg-type]
    assert {row["file"]: row["name"] for row in table(tmp_path / "t.csv")} == {
        name: "red shoes" if cluster == 1 else "" for name, cluster in CLUSTERS.items()
    }
    folders = ["0", "1 red shoes", "2"]
    found = {path.relative_to(tmp_path / "sorted").as_posix(): path for path in (tmp_path / "sorted").rglob("*.png")}
    assert found.keys() == {f"{folders[cluster]}/{name}" for name, cluster in CLUSTERS.items()}
    for name, path in found.items():
        assert path.read_bytes() == (new / name.partition("/")[2]).read_bytes()
        assert path.is_symlink() == (link == "symbolic")
        assert path.samefile(new / name.partition("/")[2]) == (link != "none")


def test_embeddings_of_another_encoder_are_refused(run: Workspace, photos: Path, tmp_path: Path) -> None:
    write_record(run.embedded, [run.embeddings(0)], [0], {"encoder": "another"})
    with pytest.raises(
        UserError, match=f"^{run.embedded} was made from another encoder: another then, .* now; run conr"
    ):
        assign_folder(run, photos, tmp_path / "table.csv", device="cpu")


def test_embeddings_of_another_run_are_refused(run: Workspace, photos: Path, tmp_path: Path) -> None:
    np.save(run.embeddings(0), np.load(run.embeddings(0))[::-1].copy())
    with pytest.raises(UserError, match=f"^{run.embeddings(0)} is missing or damaged"):
        assign_folder(run, photos, tmp_path / "table.csv", device="cpu")
