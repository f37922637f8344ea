"""The shards of an engine: what is missing is embedded, each shard is written when all of its parts are there."""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from conr.embedding.bfloat16 import open_embedder
from conr.embedding.engines.images import Images
from conr.embedding.engines.local import Embedded, embed_here
from conr.embedding.engines.settings import Engine
from conr.embedding.engines.shards import Describe, Shards
from conr.observer import SILENT, Observer


def write_shards(
    engine: Engine,
    encoder: Path,
    device: str,
    images: Images,
    shards: Shards,
    describe: Describe = lambda embeddings: {},
    observer: Observer = SILENT,
    name: str = "embed",
) -> None:
    """Make the shards that are missing, of the engine's share of them.

    Args:
        engine: who embeds; one that merges only checks that all shards are there.
        encoder: the .onnx file.
        device: "cpu", "cuda" or "auto".
        images: those of the shards.
        shards: where to.
        describe: (G, D) embeddings → further columns of G values.
        observer: notified of every part, in a task of that name.

    Raises:
        UserError: the engine cannot be used, or merges and shards are missing.
    """
    if engine.merges:
        shards.check_all("run the tasks of --shard that make them, and then --shard merge again")
        return
    own = engine.own(shards.count)
    missing = shards.missing(own)
    parts = [part for number in missing for part in shards.parts(number)]
    total = sum(len(shards.rows(number)) for number in own)
    held: dict[int, dict[int, Embedded]] = {number: {} for number in missing}
    with observer.task(name, total, done=total - sum(map(len, parts))):
        if not parts:
            return
        with closing(_embedded(engine, encoder, device, images, parts)) as results:
            for result in results:
                number = result.first // shards.manifest.rows
                observer.step_done(len(result.reasons))
                held[number][result.first] = result
                if len(held[number]) == len(shards.parts(number)):
                    _write(shards, number, images, held.pop(number), describe)
    if held:
        raise RuntimeError(f"the engine gave no result for parts of shards {sorted(held)}")


def _embedded(
    engine: Engine, encoder: Path, device: str, images: Images, parts: Sequence[range]
) -> Generator[Embedded, None, None]:
    if engine.name == "local":
        return embed_here(open_embedder(encoder, device), images, parts)
    from conr.embedding.engines.ray_data import embed_with_ray

    open_embedder(encoder, device, exact=True)  # else every actor would refuse it
    return embed_with_ray(encoder, device, images, parts, engine.address)


def _write(shards: Shards, number: int, images: Images, parts: dict[int, Embedded], describe: Describe) -> None:
    ordered = [parts[first] for first in sorted(parts)]
    embeddings = np.concatenate([part.embeddings for part in ordered])
    reasons = [reason for part in ordered for reason in part.reasons]
    shards.write(number, images.names(shards.rows(number)), embeddings, reasons, describe(embeddings))
