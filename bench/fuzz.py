"""Mutations of every file that conr reads, against the loader that reads it.

A loader may refuse with one line, or read: whether what it reads is what was written is for the hashes of the records,
which stress.py tries with whole commands. A trace, a message of several lines, a dead process and more than ten seconds
are lost.
"""

import random
import warnings
from collections.abc import Callable
from concurrent.futures import TimeoutError as Late
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from PIL import Image

from conr.data.decode import decode
from conr.data.labels import read_table
from conr.data.opening import UnreadableImageError
from conr.data.store import open_store
from conr.embedding.session import open_session
from conr.errors import UserError
from conr.files import load_array
from conr.pipeline.params_file import read
from conr.pipeline.records import read_record
from conr.processes import Workers
from conr.training.checkpoints import Checkpoint
from conr.training.log import read_log
from conr.training.weights import load_weights

LONGEST = 10  # seconds
LOADERS: dict[str, Callable[[Path], object]] = {
    "params.yaml": read,
    "artifacts/store/manifest.json": lambda file: open_store(file.parent),
    "artifacts/store/images.npy": lambda file: open_store(file.parent),
    "artifacts/pretrain/weights.safetensors": load_weights,
    "artifacts/pretrain/log.csv": read_log,
    "artifacts/pretrain/record.json": lambda file: read_record(file.parent, "run it again"),
    "artifacts/embeddings/0.npy": lambda file: load_array(file, "run it again"),
    "artifacts/encoder.onnx": lambda file: open_session(file, "cpu"),
    "results/centroids.npy": lambda file: load_array(file, "run it again"),
    "labels.csv": read_table,
    "training/state.pt": lambda file: Checkpoint(file.parent).load(),
    **{f"photo.{suffix}": lambda file: decode(file, 32, "crop") for suffix in ("png", "jpg", "tif", "webp", "gif")},
}


def add_files(project: Path) -> None:
    """Put beside the files of a finished project those that it has not: a checkpoint, a table of labels, images."""
    Checkpoint(project / "training").save({"history": [{"epoch": 1}], "model": {}})
    (project / "labels.csv").write_text('file,label\na.png,cat\n"b.png",dog\n')
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "tif", "webp", "gif"):
        Image.fromarray(pixels).save(project / f"photo.{suffix}")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with bits or bytes changed, added, lost or repeated, or cut."""
    result = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5, 20])):
        position = chance.randrange(len(result) + 1)
        size = min(chance.choice([1, 1, 2, 4, 8, 64]), len(result) - position)
        way = chance.randrange(6)
        if way == 0 and position < len(result):
            result[position] ^= 1 << chance.randrange(8)
        elif way == 1:
            result[position : position + size] = chance.randbytes(size)
        elif way == 2:
            result[position:position] = chance.randbytes(max(size, 1))
        elif way == 3:
            del result[position : position + size]
        elif way == 4:
            result[position:position] = result[position : position + size] * chance.choice([1, 2, 50])
        elif position:
            del result[position:]
    return bytes(result)


def load(name: str, folder: Path) -> str:
    """What is wrong with how a loader takes a file; empty for nothing."""
    warnings.simplefilter("ignore")
    try:
        LOADERS[name](folder / name)
    except (UserError, UnreadableImageError) as error:
        return f"several lines: {error}" if "\n" in str(error) else ""
    except Exception as error:  # which is what is looked for
        return f"{type(error).__name__}: {error}"
    return ""


def fuzz(own: Path, chance: random.Random, count: int) -> str:
    """Make mutations of files in a folder; returns what is wrong with the first that is lost, or nothing."""
    add_files(own)
    whole = {name: (own / name).read_bytes() for name in LOADERS}
    with Workers(1, kill_on_error=True) as pool:
        for number in range(count):
            name = chance.choice(list(LOADERS))
            file = own / name
            file.unlink(missing_ok=True)
            file.write_bytes(mutated(whole[name], chance))
            try:
                wrong = pool.submit(load, name, own).result(timeout=LONGEST)
            except Late:
                wrong = f"more than {LONGEST} s"
            except BrokenProcessPool:
                wrong = "the process died"
            if wrong:
                return f"{name}, mutation {number}: {wrong}"
            file.unlink(missing_ok=True)
            file.write_bytes(whole[name])
    return ""
