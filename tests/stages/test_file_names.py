"""File names are bytes: those that are no UTF-8 stop neither the console nor the results."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_run import write_encoder
from PIL import Image
from project import BIN, run_stages, table, tiny, write_params

from conr.data.store import load_manifest
from conr.files import save_array, write_text
from conr.pipeline.records import of_embeddings, write_record
from conr.pipeline.workspace import Workspace
from conr.training.log import write_log

LATIN = os.fsdecode("Käfer".encode("latin-1"))
IMAGES = 24
PARAMETERS: dict[str, Any] = {
    "prepare.source": "folder",
    "prepare.path": "photos",
    "prepare.labels": "folder",
    "clusters": 2,
    "k": 2,
    "k1": 4,
    "pretrain.batch_size": 12,
    "finetune.batch_size": 12,
    "evaluate.context": 12,
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A project with photos in two folders, which are their labels: the name of one is no UTF-8."""
    generator = np.random.default_rng(0)
    for label in ("Ameise", LATIN):
        try:
            (tmp_path / "photos" / label).mkdir(parents=True)
        except OSError:
            pytest.skip("this file system takes Unicode only")
        for number in range(IMAGES // 2):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number:02}.png")
    (tmp_path / "photos" / LATIN / "notes.txt").touch()
    write_params(tmp_path, PARAMETERS)
    return tmp_path


def test_the_console_and_all_results_take_them(photos: Path) -> None:
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as in a locale such as en_US.UTF-8
    command = [str(BIN / "conr"), "prepare"]
    packed = subprocess.run(command, cwd=photos, env=strict, capture_output=True, text=True, timeout=300, check=False)
    assert packed.returncode == 0, packed.stderr
    assert "  K\\udce4fer/notes.txt: not an image by the suffix of its name" in packed.stdout

    workspace = Workspace.at(photos)
    for trained in (workspace.pretrained, workspace.finetuned(0)):
        write_text(trained.weights, "of no consequence")
    write_encoder(workspace.encoder, 16)
    made_from = of_embeddings(workspace, load_manifest(workspace.store), 0) | {"encoder": ""}
    paths = [workspace.embeddings(), workspace.embeddings(0)]
    for path in paths:
        save_array(path, np.repeat(np.eye(2, 16, dtype=np.float32), IMAGES // 2, axis=0))
    write_record(workspace.embedded, paths, [0], made_from, "float32")
    for log in (workspace.pretrained.log, workspace.finetuned(0).log):
        write_log(log, [{"epoch": 1, "loss": 1.0}])
    run_stages(workspace, tiny(PARAMETERS), "evaluate")
    assert workspace.assignments.read_bytes().count("Käfer".encode("latin-1") + b"/") == IMAGES // 2
    pairs = [(row["label"], row["cluster"]) for row in table(workspace.plots / "confusion.csv")]
    assert sorted(pairs) == [("Ameise", "Ameise")] * (IMAGES // 2) + [("K\\udce4fer", "K\\udce4fer")] * (IMAGES // 2)
    assert "K?fer" in workspace.report.read_text(encoding="utf-8")
