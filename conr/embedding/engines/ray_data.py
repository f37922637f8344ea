"""Embedding by Ray Data, on this machine or a cluster.

On CPUs an actor on each core reads parts and embeds them. For GPUs tasks read on the CPUs, all of which are free for
them: actors that took them all would wait for ever for what nobody can read.

Every node needs the same environment as this process, and the images under the same path. Where a node, an actor or a
task ends early, Ray runs its parts again; each part counts once, as results carry its number.
"""

import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa

from conr.embedding.bfloat16 import open_embedder
from conr.embedding.engines.images import Images, Pixels
from conr.embedding.engines.local import Embedded
from conr.embedding.engines.ray_cluster import cluster_address, connected
from conr.embedding.session import PROVIDERS, run_batches
from conr.errors import UserError, one_line

WINDOW = 10_000  # parts that Ray is told of at a time


def embed_with_ray(
    encoder: Path, device: str, images: Images, parts: Sequence[range], address: str | None
) -> Generator[Embedded, None, None]:
    """Embed parts of images, in any order, with the same batches as `embed_here`.

    Args:
        encoder: the .onnx file; its content is sent to the nodes.
        device: "cpu", "cuda" or "auto".
        images: which the nodes read.
        parts: numbers of images.
        address: of a cluster; None for that in the variable RAY_ADDRESS, or a Ray of its own on this machine.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address or none with such a device, or it gave up.
    """
    with connected(cluster_address(address), "ray.data") as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        actors, gpus = _actors(ray.cluster_resources(), device)
        for first in range(0, len(parts), WINDOW):
            window = parts[first : first + WINDOW]
            rows = [{"first": part.start, "read": pickle.dumps(images.reader(part))} for part in window]
            dataset = embedded(ray, rows, encoder.read_bytes(), "cuda" if gpus else "cpu", min(actors, len(rows)), gpus)
            try:
                for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                    yield from _results(table)
            except ray.exceptions.RayTaskError:  # an error of the work itself, as the local engine would raise it
                raise
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"Ray stopped: {one_line(error)}; run the same command to resume, shards that are whole are kept"
                ) from error


def embedded(ray: Any, rows: list[dict[str, Any]], encoder: bytes, device: str, actors: int, gpus: int) -> Any:
    """The plan: a Ray Dataset of results from rows of parts.

    Args:
        ray: the module, connected.
        rows: number of the first image, and pickled reader of each part.
        encoder: content of the .onnx file.
        device: "cpu" or "cuda".
        actors: how many compute.
        gpus: of each; where it has one, tasks read.
    """
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    if gpus:
        dataset = dataset.map_batches(_read, batch_size=1, batch_format="pyarrow", num_cpus=1)
    # A pool of a fixed size would not replace an actor that is lost for good.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors)
    return dataset.map_batches(
        _Embedder,
        fn_constructor_args=(encoder, device),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=0 if gpus else 1,
        num_gpus=gpus,
    )


def _actors(resources: dict[str, float], device: str) -> tuple[int, int]:
    """How many actors compute, and how many GPUs each has."""
    gpus = int(resources.get("GPU", 0)) if PROVIDERS["cuda"] in onnxruntime.get_available_providers() else 0
    if device == "cuda" and not gpus:
        raise UserError("device: cuda was asked for, but Ray has no GPU that onnxruntime can use; use --device cpu")
    return (gpus, 1) if gpus and device != "cpu" else (max(int(resources.get("CPU", 0)), 1), 0)


def _read(table: pa.Table) -> pa.Table:
    """The pixels of a part."""
    pixels: Pixels = pickle.loads(table["read"][0].as_py())()
    return pa.table(
        {
            "first": table["first"],
            "pixels": pa.array([pixels.images.tobytes()], pa.binary()),
            "shape": pa.array([pixels.images.shape], pa.list_(pa.int64())),
            "reasons": pa.array([pixels.reasons], pa.list_(pa.string())),
        }
    )


class _Embedder:
    """An actor with an opened encoder."""

    def __init__(self, encoder: bytes, device: str) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.onnx"
            path.write_bytes(encoder)
            self.session = open_embedder(path, device, exact=True)

    def __call__(self, table: pa.Table) -> pa.Table:
        table = table if "pixels" in table.column_names else _read(table)
        images = np.frombuffer(table["pixels"][0].as_buffer(), np.uint8).reshape(table["shape"][0].as_py())
        embeddings = run_batches(self.session, images)
        return pa.table(
            {
                "first": table["first"],
                "embeddings": pa.array([embeddings.tobytes()], pa.binary()),
                "dimension": pa.array([embeddings.shape[1]]),
                "reasons": table["reasons"],
            }
        )


def _results(table: pa.Table) -> Iterator[Embedded]:
    for row in table.to_pylist():
        embeddings = np.frombuffer(row["embeddings"], np.float32).reshape(-1, row["dimension"])
        yield Embedded(row["first"], embeddings, row["reasons"])
