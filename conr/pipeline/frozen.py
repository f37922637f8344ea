"""The features of a frozen backbone: pretrain without training."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from conr.data.store import Store
from conr.embedding.appending import append_projection
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.projection import fit_projection, write_projected
from conr.embedding.session import Properties, embed, open_session
from conr.models.backbones import identity, parse_backbone
from conr.observer import Observer
from conr.parameters import PretrainStage
from conr.pipeline.records import write_record
from conr.pipeline.workspace import Workspace
from conr.training.cached_views import write_views


def embed_frozen(workspace: Workspace, parameters: PretrainStage, store: Store, observer: Observer) -> None:
    """Write a frozen backbone as one ONNX file, and its features of all images (and of random views of them).

    The features are centered and reduced by PCA, both fitted to the images to train on, and have unit length.

    Raises:
        UserError: the backbone is missing, damaged or no image network.
    """
    backbone, files = parse_backbone(parameters.network.backbone), workspace.pretrained
    made_from = {"store": store.manifest.training_identity, "backbone": identity(backbone)}
    manifest = store.manifest
    properties = Properties(image_size=manifest.image_size, fit=manifest.fit)
    files.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="backbone-", dir=files.folder) as folder:
        encoder, raw = Path(folder) / "encoder.onnx", Path(folder) / "raw.npy"
        write_frozen_encoder(backbone, manifest.image_size, encoder)
        session = open_session(encoder, "cpu" if parameters.device == "cpu" else "auto")
        embed(session, store.images, raw, observer, f"features by {backbone.kind}")
        features = np.load(raw, mmap_mode="r")
        projection = fit_projection(features, parameters.network.dimension, slice(manifest.train_count))
        append_projection(encoder, projection, files.encoder, properties)
        write_projected(features, projection, files.features)
    for path in (files.weights, files.log, files.views):  # of a training before, or of another number of views
        path.unlink(missing_ok=True)
    made, settings = [files.encoder, files.features], parameters.pretrain
    if settings.cached_views:
        session = open_session(files.encoder, "cpu" if parameters.device == "cpu" else "auto")
        images, views, seed = store.training_images, parameters.views, parameters.seed
        write_views(session, images, views, settings.crop_scale, settings.cached_views, seed, files.views, observer)
        made.append(files.views)
    write_record(files.folder, made, [parameters.seed], made_from, parameters=parameters)
