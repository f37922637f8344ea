"""A folder of photos and a run whose clusters are known, with all results that show names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from project import tiny

from conr.data.store import open_store
from conr.embedding.clusterer import remember
from conr.embedding.session import embed, open_session
from conr.evaluation.assignment import assign
from conr.files import save_array, sha256_of, write_table, write_text
from conr.pipeline.clusterer import write_clusterer
from conr.pipeline.exports import write_parquet
from conr.pipeline.naming import identity_of
from conr.pipeline.prepare import prepare
from conr.pipeline.records import write_record
from conr.pipeline.workspace import Workspace
from conr.report.page import Report, write_page

SIZE = 8


def write_photos(folder: Path, names: Sequence[str]) -> None:
    """Images of different brightness, so that a network tells them apart."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 256, (SIZE, SIZE, 3)) * generator.random(3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)


def packed_photos(root: Path, photos: Path, **settings: object) -> Workspace:
    """A workspace with the store of a folder."""
    workspace = Workspace.at(root)
    changes = {"source": "folder", "path": str(photos), "labels": "none", "image_size": SIZE, "fit": "pad", **settings}
    prepare(workspace, tiny({f"prepare.{key}": value for key, value in changes.items()}))
    return workspace


def finish(workspace: Workspace, encoder: Path, clusters: Mapping[str, int]) -> None:
    """Write embeddings and results, as if these were the clusters of the store's images."""
    store = open_store(workspace.store)
    workspace.encoder.parent.mkdir(parents=True, exist_ok=True)
    workspace.encoder.unlink(missing_ok=True)
    workspace.encoder.symlink_to(encoder)
    embed(open_session(encoder, "cpu"), store.images, workspace.embeddings(0))
    embeddings: NDArray[np.float32] = np.load(workspace.embeddings(0))
    files = store.manifest.files
    numbers = np.array([clusters[file] for file in files])
    centroids = np.stack([embeddings[numbers == number].mean(0) for number in range(numbers.max() + 1)])
    assignment = assign(embeddings, centroids, numbers)
    write_table(workspace.assignments, *assignment.table(files), errors="surrogateescape")
    write_parquet(workspace.explorable, files, assignment, store.images)
    save_array(workspace.centroids, centroids)
    memory = remember(embeddings, numbers, centroids, by_votes=True)
    write_clusterer(workspace.clusterer, workspace.encoder, memory, identity_of(files, numbers))
    write_text(workspace.summary, "all is well\n")
    write_page(Report("All is well", [], {}, [], [], []), workspace.report)
    made_by = {"encoder": sha256_of(encoder)}
    write_record(workspace.embedded, [workspace.embeddings(0)], [0], made_by)
    write_record(workspace.results, [workspace.centroids], [0], made_by, method="graph")
