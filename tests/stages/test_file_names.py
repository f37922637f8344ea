"""File names are bytes: those that are no UTF-8 stop neither the console nor the results."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project import run_conr, write_params

from conr.parameters import EvaluateStage
from conr.progress import silent
from conr.training.log import write_log
from stages import evaluate, params_file
from stages.paths import (
    ASSIGNMENTS,
    EMBEDDED,
    EMBEDDINGS,
    FINETUNE_LOG,
    PLOTS,
    PRETRAIN_LOG,
    PRETRAINED_EMBEDDINGS,
    REPORT,
)

LATIN = os.fsdecode("Käfer".encode("latin-1"))
IMAGES = 24


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos in two folders, which are their labels: the name of one is no UTF-8. The current folder."""
    monkeypatch.chdir(tmp_path)
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
    write_params(
        tmp_path,
        {
            "prepare": {"source": "folder", "path": "photos", "labels": "folder"},
            "clusters": 2,
            "k": 2,
            "k1": 4,
            "pretrain": {"batch_size": 12},
            "finetune": {"batch_size": 12},
            "evaluate": {"context": 12},
        },
    )
    return tmp_path


def test_the_console_and_all_results_take_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in a locale such as en_US.UTF-8
    packed = run_conr(project, "prepare")
    assert packed.returncode == 0, packed.stderr
    assert "  K\\udce4fer/notes.txt: not an image file" in packed.stdout

    units = np.repeat(np.eye(2, 16, dtype=np.float32), IMAGES // 2, axis=0)
    EMBEDDINGS.parent.mkdir()
    for path in (EMBEDDINGS, PRETRAINED_EMBEDDINGS):
        np.save(path, units)
    EMBEDDED.write_text(json.dumps({"seeds": [0], "precision": "float32", "encoder": ""}))
    for log in (PRETRAIN_LOG, FINETUNE_LOG):
        log.parent.mkdir()
        write_log(log, [{"epoch": 1, "loss": 1.0}])
    params = params_file.validated(params_file.read())
    evaluate.run(params_file.view_of(EvaluateStage, params), silent)
    assert ASSIGNMENTS.read_bytes().count("Käfer".encode("latin-1") + b"/") == IMAGES // 2
    with (PLOTS / "confusion.csv").open(encoding="utf-8") as file:
        pairs = [(row["label"], row["cluster"]) for row in csv.DictReader(file)]
    assert sorted(pairs) == [("Ameise", "Ameise")] * (IMAGES // 2) + [("K\\udce4fer", "K\\udce4fer")] * (IMAGES // 2)
    assert "K?fer" in REPORT.read_text(encoding="utf-8")
