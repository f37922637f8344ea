"""The code of docs/exports.md runs with nothing but numpy, Pillow and onnxruntime, and finds conr's clusters."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from project import ROOT
from small_networks import small_spec

from conr.data.decode import decode
from conr.embedding.clusterer import remember
from conr.embedding.export import export
from conr.embedding.session import INPUT, OUTPUT, Properties, open_session
from conr.evaluation.assignment import assign
from conr.pipeline.clusterer import write_clusterer

SIZE = 32
LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); exec(compile(open(sys.argv[1]).read(), sys.argv.pop(1), 'exec'))"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with these three and the libraries that they bring."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("numpy", "PIL", "onnxruntime"):
        package = Path(importlib.import_module(name).__file__ or "").parent
        (folder / name).symlink_to(package)
        for libraries in package.parent.glob({"PIL": "[pP]illow.libs"}.get(name, f"{name}.libs")):
            (folder / libraries.name).symlink_to(libraries)
    return folder


def alone(packages: Path, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code with no other packages than these and the standard library."""
    (folder / "code.py").write_text(code)
    command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(packages), "code.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def documented_code() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/exports.md").read_text(), re.DOTALL)
    return next(block for block in blocks if "clusterer.onnx" in block)


def photo(seed: int, height: int, width: int) -> Image.Image:
    """A smooth picture of some colors."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 5, 3)) * generator.random(3)
    return Image.fromarray(small.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several kinds and sizes, one of which must be turned, and one is gray."""
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(32, 32), (20, 31), (480, 640), (700, 500), (64, 300), (1500, 1000)]
    names = [f"photo {number}.{suffix}" for number in range(len(sizes)) for suffix in ("jpg", "png", "webp")]
    for number, name in enumerate(names):
        image = photo(number, *sizes[number // 3])
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 3 == 0 else 1
        (image.convert("L") if number == 4 else image).save(folder / name, exif=exif)
    return [folder / name for name in names]


def test_the_packages_are_alone(packages: Path, tmp_path: Path) -> None:
    assert alone(packages, tmp_path, "import numpy, PIL.Image, onnxruntime").returncode == 0
    for name in ("conr", "torch", "onnx", "pydantic", "scipy"):
        assert f"No module named '{name}'" in alone(packages, tmp_path, f"import {name}").stderr


@pytest.mark.parametrize("by_votes", [False, True], ids=["kmeans", "graph"])
def test_the_documented_code_finds_the_clusters_that_conr_finds(
    packages: Path, photos: list[Path], tmp_path: Path, by_votes: bool
) -> None:
    encoder, pixels = tmp_path / "encoder.onnx", np.stack([decode(path, SIZE, "crop") for path in photos])
    export(small_spec().build(seed=0).online, SIZE, encoder, Properties(image_size=SIZE, fit="crop"))
    embeddings: NDArray[np.float32] = open_session(encoder, "cpu").run([OUTPUT], {INPUT: pixels})[0]
    clusters = assign(embeddings, embeddings[[0, 5, 11]]).clusters
    clusters = clusters[::-1].copy() if by_votes else clusters
    seen = len(photos) - 6
    memory = remember(embeddings[:seen], clusters[:seen], embeddings[[0, 5, 11]], by_votes)
    write_clusterer(tmp_path / "results" / "clusterer.onnx", encoder, memory, "an identity", {1: "red shoes"})

    result = alone(packages, tmp_path, documented_code(), *map(str, photos))
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in photos]
    found = [int(line[1]) for line in lines]
    assert found[:seen] == clusters[:seen].tolist()
    assert len(set(found)) == 3
    assert [line[2] for line in lines] == ["red shoes" if cluster == 1 else "" for cluster in found]
    session = open_session(tmp_path / "results" / "clusterer.onnx", "cpu")
    expected = session.run(["cluster", "confidence", "novelty"], {INPUT: pixels})
    for line, *numbers in zip(lines, *expected, strict=True):
        np.testing.assert_allclose([float(cell) for cell in [line[1], *line[3:]]], numbers, atol=2e-3)
    assert any(float(line[4]) > 0 for line in lines[seen:])
