"""prepare: images of a source → the packed store."""

from pathlib import Path

from conr.data.folders import folder_state
from conr.data.items import Source
from conr.data.pack import check_target, pack
from conr.data.sources import check_folder, open_source
from conr.data.store import Manifest
from conr.data.unfinished import fingerprint
from conr.errors import UserError
from conr.files import write_text
from conr.observer import SILENT, Observer
from conr.parameters import PrepareStage
from conr.pipeline.workspace import Workspace, writes


@writes
def prepare(
    workspace: Workspace, parameters: PrepareStage, observer: Observer = SILENT, source: Source | None = None
) -> Manifest:
    """Pack images into the store, or resume where the same packing of a folder was stopped.

    Args:
        workspace: where to.
        parameters: which images, and how.
        observer: notified of every image.
        source: images to pack instead of those that the parameters name.

    Returns:
        What the store holds.

    Raises:
        UserError: the images are missing, or too many are broken.
    """
    check_target(workspace.store)
    root = str(workspace.outside(parameters.prepare.root))
    settings = parameters.prepare.model_copy(update={"root": root})
    if source is not None or settings.source not in ("folder", "webdataset"):
        return pack(source or open_source(settings), settings, workspace.store, observer)
    folder = Path(settings.path)
    _check_apart(workspace, folder)
    check_folder(folder)
    before = folder_state(folder, f"prepare.path: {folder}", settings.exclude)  # it may change while it is read
    source = open_source(settings)
    with workspace.own_checkpoint(f"prepare-{fingerprint(source, settings, before)}") as unfinished:
        workspace.remove_checkpoints("prepare-*")  # of other images or settings, which nobody may ask for again
        manifest = pack(source, settings, workspace.store, observer, unfinished)
    write_text(workspace.packed_folder, before)
    return manifest


def _check_apart(workspace: Workspace, images: Path) -> None:
    """The results of one run would be among the images of the next, and DVC refuses a folder that holds its outputs."""
    if workspace.store.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"prepare.path: {images} holds the project itself, whose results would be images; name a folder beside or "
            "below it that holds only the images"
        )
