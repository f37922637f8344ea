"""conr prepare."""

from collections import Counter
from collections.abc import Sequence

from conr.data.folders import by_suffix
from conr.data.items import NO_SUFFIX, OTHER_SUFFIX
from conr.data.store import Manifest
from conr.observer import Observer
from conr.parameters import PrepareStage
from conr.pipeline.prepare import prepare
from conr.pipeline.workspace import Workspace
from conr.text import counted, printable

SHOWN = 3  # files or reasons of a kind that are named


def run(workspace: Workspace, parameters: PrepareStage, observer: Observer) -> str:
    """Pack the images; returns the summary."""
    manifest = prepare(workspace, parameters, observer)
    size, scored = manifest.image_size, manifest.count - manifest.score_start
    images = f"{counted(manifest.count, 'image')} of {size}×{size} pixels"
    shards = f", {counted(manifest.shards, 'shard')}" if manifest.shards else ""
    lines = [f"{images} from {printable(manifest.source)} in {workspace.store}{shards}"]
    if min(manifest.train_count, scored) < manifest.count:
        lines.append(f"{manifest.train_count:,} to train on, {scored:,} to score")
    if manifest.labels is not None:
        known = sum(label >= 0 for label in manifest.labels)
        lines.append(
            f"{counted(known, 'label')} of {counted(len(manifest.class_names), 'class', 'classes')}, for scores only"
        )
    if manifest.imbalance > 1:
        lines.append(_long_tail(manifest))
    lines += map(printable, manifest.notes)
    lines += _left_out(manifest, f"{workspace.store}/manifest.json")
    lines += _named(manifest, manifest.blank, "image has a single color", "images have a single color")
    equal = [image for image, _ in manifest.duplicates]
    lines += _named(manifest, equal, "image equals another one", "images equal another one")
    return "\n".join(lines)


def _left_out(manifest: Manifest, table: str) -> list[str]:
    """What was skipped, and what is broken: how much of it, and the first."""
    lines = []
    first_broken = len(manifest.skipped) - manifest.broken
    skipped, broken = manifest.skipped[:first_broken], manifest.skipped[first_broken:]
    if skipped:
        others = [file for file, reason in skipped if reason in (OTHER_SUFFIX, NO_SUFFIX)]
        reasons = Counter(reason for _, reason in skipped if reason not in (OTHER_SUFFIX, NO_SUFFIX))
        sums = [by_suffix(others)] if others else []
        sums += [f"{count:,} × {printable(reason)}" for reason, count in reasons.most_common(SHOWN)]
        number = counted(len(skipped), "file or folder", "files or folders")
        lines.append(f"{number} skipped ({', '.join(sums)}); {table} lists them all:")
        lines += [f"  {printable(file)}: {printable(reason)}" for file, reason in skipped[:SHOWN]]
    if len(skipped) > manifest.count:
        lines.append("warning: more files were skipped than packed; is prepare.path the right folder?")
    if broken:
        lines.append(f"{counted(len(broken), 'image')} cannot be read; {table} lists them all:")
        firsts = {reason: file for file, reason in reversed(broken)}
        lines += [
            f"  {count:,} × {printable(reason)}; the first: {printable(firsts[reason])}"
            for reason, count in Counter(reason for _, reason in broken).most_common(SHOWN)
        ]
    return lines


def _named(manifest: Manifest, images: Sequence[int], one: str, more: str) -> list[str]:
    """How many images are of a kind, and the first of them."""
    if not images:
        return []
    names = ", ".join(printable(manifest.files[image]) for image in images[:SHOWN])
    return [f"{counted(len(images), one, more)}: {names}{', …' if len(images) > SHOWN else ''}"]


def _long_tail(manifest: Manifest) -> str:
    sizes = Counter((manifest.labels or [])[: manifest.train_count]).most_common()
    (largest, most), (smallest, fewest) = sizes[0], sizes[-1]
    names = manifest.class_names
    return f"long tail: {most:,} images of {names[largest]} to train on, {fewest:,} of {names[smallest]}"
