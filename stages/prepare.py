"""prepare: images of a source → the packed store."""

import os
from collections import Counter
from pathlib import Path

from conr.data.pack import pack
from conr.data.sources import open_source
from conr.data.store import Manifest
from conr.parameters import PrepareStage
from conr.progress import Progress
from stages.paths import STORE


def run(parameters: PrepareStage, progress: Progress) -> str:
    """Pack the images that the parameters describe; returns the summary."""
    # DVC_ROOT is the real repository even when DVC runs an experiment in a temporary copy, which has no data sets.
    root = Path(os.environ.get("DVC_ROOT", ".")) / Path(parameters.prepare.root).expanduser()
    settings = parameters.prepare.model_copy(update={"root": str(root)})
    source = open_source(settings)
    manifest = pack(source, settings, STORE, progress)
    size = manifest.image_size
    lines = [f"{manifest.count:,} images of {size}×{size} pixels from {source.name} in {STORE}"]
    scored = manifest.count - manifest.score_start
    if min(manifest.train_count, scored) < manifest.count:
        lines.append(f"{manifest.train_count:,} to train on, {scored:,} to score")
    if manifest.labels is not None:
        known = sum(label >= 0 for label in manifest.labels)
        lines.append(f"{known:,} labels of {len(manifest.class_names)} classes, for scores only")
    if manifest.imbalance > 1:
        lines.append(_long_tail(manifest))
    if manifest.skipped:
        lines.append(f"{len(manifest.skipped):,} files skipped; {STORE}/manifest.json lists them with the reason:")
        lines += [f"  {file}: {reason}" for file, reason in manifest.skipped[:3]]
    return "\n".join(lines)


def _long_tail(manifest: Manifest) -> str:
    sizes = Counter((manifest.labels or [])[: manifest.train_count]).most_common()
    (largest, most), (smallest, fewest) = sizes[0], sizes[-1]
    names = manifest.class_names
    return f"long tail: {most:,} images of {names[largest]} to train on, {fewest:,} of {names[smallest]}"
