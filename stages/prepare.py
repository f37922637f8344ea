"""conr prepare."""

from collections import Counter

from conr.data.store import Manifest
from conr.observer import Observer
from conr.parameters import PrepareStage
from conr.pipeline.prepare import prepare
from conr.pipeline.workspace import Workspace

SHOWN = 3  # skipped files that are named


def run(workspace: Workspace, parameters: PrepareStage, observer: Observer) -> str:
    """Pack the images; returns the summary."""
    manifest = prepare(workspace, parameters, observer)
    size, scored = manifest.image_size, manifest.count - manifest.score_start
    lines = [f"{manifest.count:,} images of {size}×{size} pixels from {manifest.source} in {workspace.store}"]
    if min(manifest.train_count, scored) < manifest.count:
        lines.append(f"{manifest.train_count:,} to train on, {scored:,} to score")
    if manifest.labels is not None:
        known = sum(label >= 0 for label in manifest.labels)
        lines.append(f"{known:,} labels of {len(manifest.class_names)} classes, for scores only")
    if manifest.imbalance > 1:
        lines.append(_long_tail(manifest))
    if manifest.skipped:
        lines.append(f"{len(manifest.skipped):,} files skipped; {workspace.store}/manifest.json lists them all:")
        lines += [f"  {file}: {reason}" for file, reason in manifest.skipped[:SHOWN]]
    return "\n".join(lines)


def _long_tail(manifest: Manifest) -> str:
    sizes = Counter((manifest.labels or [])[: manifest.train_count]).most_common()
    (largest, most), (smallest, fewest) = sizes[0], sizes[-1]
    names = manifest.class_names
    return f"long tail: {most:,} images of {names[largest]} to train on, {fewest:,} of {names[smallest]}"
