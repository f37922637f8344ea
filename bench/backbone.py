"""Embedding with a frozen network: conr's loop against plain onnxruntime, in images/s.

    make bench-backbone      # two minutes on two CPU cores

- conr: `conr.embedding.session.embed`, from a packed store's images in a memory-mapped file to a file of embeddings.
- same batches: `session.run` of the same file on the same batches, already in memory, all cores on one batch.
- batches of 32: likewise.
- network alone: likewise on the same batches as float32 that is resized and preprocessed, without the projection.
- int8: conr's loop with the int8 file.
- bfloat16: conr's loop with OpenVINO, if it is installed and the processor computes in bfloat16.

Images are smooth with some noise; decoding is not part of it. The calls take turns. A ratio is the median of those of
each turn, by the clock and by processor time: other work on the machine meets both halves of a pair.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from common import Turns, head, in_turns, line, parser
from numpy.typing import NDArray
from PIL import Image

from conr.embedding.appending import append_projection
from conr.embedding.bfloat16 import open_embedder, settle_precision
from conr.embedding.conversion import converted
from conr.embedding.frozen import prepare, write_frozen_encoder
from conr.embedding.int8 import quantize
from conr.embedding.network import ImageNetwork, open_network
from conr.embedding.projection import fit_projection
from conr.embedding.session import INPUT, PROVIDERS, Properties, batch_size, embed, open_session
from conr.models.backbones import Backbone, parse_backbone, weights_file
from conr.processes import cores

DIMENSION, LARGE_BATCH = 128, 32
PAIRS = (
    ("conr", "same batches"),
    ("conr", "batches of 32"),
    ("conr", "network alone"),
    ("int8", "conr"),
    ("bfloat16", "conr"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    flags = parser(__doc__)
    flags.add_argument("--backbone", default="efficientnet-lite0", help="a value of network.backbone")
    flags.add_argument("--size", type=int, default=224, help="height and width of the images")
    flags.add_argument("--images", type=int, default=128)
    flags.add_argument("--turns", type=int, default=9)
    given = flags.parse_args(arguments)
    with TemporaryDirectory() as folder:
        ways = calls(parse_backbone(given.backbone), photos(given.images, given.size, Path(folder)), Path(folder))
        found = in_turns(ways, given.turns, warm_up=1)
    print(head(f"{given.backbone}, {given.size} px", "images/s", "processor, ms an image"))
    for name, turns in found.items():
        processor = 1000 * statistics.median(turns.processor) / given.images
        print(line(name, f"{given.images / turns.seconds:.1f}", f"{processor:.2f}"))
    print("\n" + head("ratio of rates", "wall", "processor"))
    for first, second in PAIRS:
        if first in found:
            print(line(f"{first} / {second}", *(f"{value:.2f}" for value in ratios(found[first], found[second]))))


def calls(backbone: Backbone, images: NDArray[np.uint8], folder: Path) -> dict[str, Callable[[], Any]]:
    """What is compared, each for all images."""
    encoder, int8 = write_encoder(backbone, images, folder), folder / "int8.onnx"
    half = write_encoder(backbone, images, folder, "auto")
    quantize(encoder, images, int8)
    session, quantized, plain = (
        open_session(encoder, "cpu"),
        open_session(int8, "cpu"),
        on_all_cores(onnx.load(encoder)),
    )
    network = network_of(backbone, images.shape[1])
    alone, pixels = on_all_cores(network.model), prepared(images, network)
    small, in_memory = batch_size(session, images.shape[1]), np.array(images)
    ways = {
        "conr": lambda: embed(session, images, folder / "embeddings.npy"),
        "same batches": lambda: in_batches(plain, INPUT, in_memory, small),
        "batches of 32": lambda: in_batches(plain, INPUT, in_memory, LARGE_BATCH),
        "network alone": lambda: in_batches(alone, network.input, pixels, small),
        "int8": lambda: embed(quantized, images, folder / "embeddings.npy"),
    }
    in_bfloat16 = open_embedder(half, "cpu")
    if in_bfloat16.get_providers() == [PROVIDERS["openvino"]]:
        ways["bfloat16"] = lambda: embed(in_bfloat16, images, folder / "embeddings.npy")
    return ways


def write_encoder(backbone: Backbone, images: NDArray[np.uint8], folder: Path, precision: str = "float32") -> Path:
    """The file that stage pretrain writes: images → unit vectors."""
    raw, path = folder / "raw.onnx", folder / f"{precision}.onnx"
    write_frozen_encoder(backbone, images.shape[1], raw)
    settle_precision(raw, precision, "cpu", images)
    embed(open_embedder(raw, "cpu"), images, folder / "features.npy")
    projection = fit_projection(np.load(folder / "features.npy"), DIMENSION)
    append_projection(raw, projection, path, Properties(image_size=images.shape[1]))
    return path


def network_of(backbone: Backbone, size: int) -> ImageNetwork:
    """The network without what conr puts around it."""
    path = weights_file(backbone) if backbone.kind == "onnx" else converted(backbone, size)
    return open_network(path, backbone.output).with_any_batch()


def prepared(images: NDArray[np.uint8], network: ImageNetwork) -> NDArray[np.float32]:
    """Images as the network takes them."""
    pixels = [prepare(images[[number]], network.preprocessing).astype(np.float32) for number in range(len(images))]
    return np.concatenate(pixels)


def on_all_cores(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session of onnxruntime whose calls use all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def in_batches(session: onnxruntime.InferenceSession, name: str, images: NDArray[Any], size: int) -> None:
    """Call a session once for each batch."""
    for first in range(0, len(images), size):
        session.run(None, {name: images[first : first + size]})


def ratios(first: Turns, second: Turns) -> tuple[float, float]:
    """How much faster the first is, by the clock and by the processor: medians over the turns."""
    pairs = ((first.wall, second.wall), (first.processor, second.processor))
    wall, processor = (statistics.median(b / a for a, b in zip(*pair, strict=True)) for pair in pairs)
    return wall, processor


def photos(count: int, size: int, folder: Path) -> NDArray[np.uint8]:
    """(count, size, size, 3) uint8 in a memory-mapped file: smooth, with noise."""
    generator = np.random.default_rng(0)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
    for number in range(count):
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))
        images[number] = np.clip(image + generator.normal(scale=12, size=image.shape), 0, 255)
    images.flush()
    return np.load(folder / "images.npy", mmap_mode="c")


if __name__ == "__main__":
    main()
