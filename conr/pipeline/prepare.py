"""prepare: images of a source → the packed store."""

from conr.data.items import Source
from conr.data.pack import pack
from conr.data.sources import open_source
from conr.data.store import Manifest
from conr.observer import SILENT, Observer
from conr.parameters import PrepareStage
from conr.pipeline.workspace import Workspace


def prepare(
    workspace: Workspace, parameters: PrepareStage, observer: Observer = SILENT, source: Source | None = None
) -> Manifest:
    """Pack images into the store.

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
    root = str(workspace.outside(parameters.prepare.root))
    settings = parameters.prepare.model_copy(update={"root": root})
    return pack(open_source(settings) if source is None else source, settings, workspace.store, observer)
