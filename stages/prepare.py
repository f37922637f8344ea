"""prepare: images of a source → the packed store."""

from conr.data.pack import pack
from conr.data.sources import open_source
from conr.parameters import PrepareStage
from conr.progress import Progress
from stages.paths import STORE


def run(parameters: PrepareStage, progress: Progress) -> str:
    """Pack the images that the parameters describe; returns the summary."""
    settings = parameters.prepare
    source = open_source(settings)
    manifest = pack(source, settings, STORE, progress)
    size = manifest.image_size
    lines = [f"{manifest.count:,} images of {size}×{size} pixels from {source.name} in {STORE}"]
    if manifest.labels is not None:
        known = sum(label >= 0 for label in manifest.labels)
        lines.append(f"{known:,} labels of {len(manifest.class_names)} classes, for scores only")
    if manifest.skipped:
        lines.append(f"{len(manifest.skipped):,} files skipped; {STORE}/manifest.json lists them with the reason:")
        lines += [f"  {file}: {reason}" for file, reason in manifest.skipped[:3]]
    return "\n".join(lines)
