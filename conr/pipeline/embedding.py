"""The embeddings of a store by an engine: directly, or through shards in scratch space that survive a kill."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from conr.data.store import Store
from conr.embedding.bfloat16 import open_embedder
from conr.embedding.engines.images import StoreImages
from conr.embedding.engines.run import write_shards
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.engines.shards import Shards, layout
from conr.embedding.session import batch_size, embed
from conr.files import sha256_of
from conr.observer import SILENT, Observer
from conr.pipeline.workspace import Workspace


@dataclass
class StoreEmbedding:
    """Embeds all images of a workspace's store, with several encoders one after the other.

    Attributes:
        workspace, store: whose images.
        device: "cpu", "cuda" or "auto".
        engine: who embeds.
        observer: notified of the images.
        folders: of the shards that were written or used.
    """

    workspace: Workspace
    store: Store
    device: str
    engine: Engine = LOCAL
    observer: Observer = SILENT
    folders: list[Path] = field(default_factory=list)

    @property
    def own_device(self) -> str:
        """A device that can train need not be one that onnxruntime has been built for."""
        return "cpu" if self.device == "cpu" else "auto"

    def write(self, encoder: Path, target: Path | None, name: str) -> None:
        """Write the (N, D) embeddings as an .npy file; a process that does a share writes shards only.

        Shards that are there, of exactly this encoder and these images, are used: those of an array job, or of a run
        that was stopped.

        Args:
            encoder: the .onnx file.
            target: the .npy file; None in a process that does a share.
            name: of the observer's task.

        Raises:
            UserError: the engine cannot be used, or shards that should be merged are missing or damaged.
        """
        session = open_embedder(encoder, self.own_device)
        size, dimension = self.store.manifest.image_size, session.get_outputs()[0].shape[1]
        identity = {"encoder": sha256_of(encoder), "images": self.store.manifest.checksum}
        plan = layout(identity, len(self.store.images), batch_size(session, size), size, dimension)
        folder = self.workspace.shards(plan.fingerprint)
        if self.engine == LOCAL and target is not None and not folder.exists():
            embed(session, self.store.images, target, self.observer, name)
            return
        shards = Shards.opened(folder, plan)
        path = self.workspace.store / self.store.manifest.images_file
        images = StoreImages(path, self.store.images, self.store.manifest.files)
        write_shards(self.engine, encoder, self.own_device, images, shards, observer=self.observer, name=name)
        self.folders.append(folder)
        if target is not None:
            shards.write_array(target)

    def remove_shards(self) -> None:
        """Delete the shards, when all that is made of them is whole."""
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
