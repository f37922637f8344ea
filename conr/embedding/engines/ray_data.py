"""Embedding by Ray Data, on this machine or a cluster.

On CPUs an actor on each core reads parts and embeds them. For GPUs tasks read on the CPUs, all of which are free for
them: actors that took them all would wait for ever for what nobody can read.

Every node needs the same environment as this process, and the images under the same path. Where a node, an actor or a
task ends early, Ray runs its parts again; each part counts once, as results carry its number.
"""

import logging
import os
import pickle
import secrets
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa

from conr.embedding.engines.images import Images, Pixels
from conr.embedding.engines.local import Embedded
from conr.embedding.session import PROVIDERS, open_session, run_batches
from conr.errors import UserError, one_line
from conr.processes import cores

# Nothing is reported to Ray's makers, and errors reach the user as exceptions only.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
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
    with connected(address or os.environ.get("RAY_ADDRESS")) as ray:
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


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster or started here; it ends with the block, but for a cluster or who had it before."""
    if "ray" not in sys.modules:  # it reads the variables when it is imported
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if address is None and "RAY_AUTH_MODE" not in os.environ:  # else it would write a token into the home folder
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'conr[ray]'") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    had = ray.is_initialized()
    try:
        if not had:
            handler = signal.getsignal(signal.SIGTERM)
            _start(ray, address)
            with suppress(ValueError):  # only the main thread has handlers, and only there Ray has replaced it
                signal.signal(signal.SIGTERM, handler)
        yield ray
    finally:
        if not had:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        try:
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises errors of no class of its own, such as that a node timed out
            raise UserError(
                f"Ray did not start on this machine ({one_line(error)}); run the same command when it is less busy, or "
                "use --engine local"
            ) from error
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: no Ray cluster there ({one_line(error)}); start one with ray start --head, or leave "
            "it out to use this machine"
        ) from error


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
            self.session = open_session(path, device)

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
