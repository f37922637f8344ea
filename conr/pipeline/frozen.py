"""The features of a frozen backbone: pretrain without training."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from conr.data.store import Store, open_store
from conr.embedding.appending import append_projection
from conr.embedding.bfloat16 import open_embedder, settle_precision
from conr.embedding.engines.settings import LOCAL, Engine
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.projection import fit_projection, write_projected
from conr.embedding.session import Properties
from conr.errors import UserError
from conr.models.backbones import identity, parse_backbone
from conr.observer import Observer
from conr.parameters import PretrainStage
from conr.pipeline.embedding import StoreEmbedding
from conr.pipeline.records import write_record
from conr.pipeline.workspace import Workspace
from conr.training.cached_views import write_views


def embed_frozen(
    workspace: Workspace, parameters: PretrainStage, store: Store, observer: Observer, engine: Engine = LOCAL
) -> None:
    """Write a frozen backbone as one ONNX file, and its features of all images (and of random views of them).

    The features are centered and reduced by PCA, both fitted to the images to train on, and have unit length.

    Raises:
        UserError: the backbone is missing, damaged or no image network, or the engine cannot be used.
    """
    backbone, files = parse_backbone(parameters.network.backbone), workspace.pretrained
    made_from = {"store": store.manifest.training_identity, "backbone": identity(backbone)}
    manifest = store.manifest
    properties = Properties(image_size=manifest.image_size, fit=manifest.fit)
    files.folder.mkdir(parents=True, exist_ok=True)
    embedding = StoreEmbedding(workspace, store, parameters.device, engine, observer)
    with TemporaryDirectory(prefix="backbone-", dir=files.folder) as folder:
        encoder, raw = Path(folder) / "encoder.onnx", Path(folder) / "raw.npy"
        write_frozen_encoder(backbone, manifest.image_size, encoder)
        settle_precision(encoder, parameters.precision, embedding.own_device, store.training_images)
        embedding.write(encoder, raw, f"features by {backbone.kind}")
        features = np.load(raw, mmap_mode="r")
        projection = fit_projection(features, parameters.network.dimension, slice(manifest.train_count))
        append_projection(encoder, projection, files.encoder, properties)
        write_projected(features, projection, files.features)
    for path in (files.weights, files.log, files.views):  # of a training before, or of another number of views
        path.unlink(missing_ok=True)
    made, settings = [files.encoder, files.features], parameters.pretrain
    if settings.cached_views:
        session = open_embedder(files.encoder, embedding.own_device)
        images, views, seed = store.training_images, parameters.views, parameters.seed
        write_views(session, images, views, settings.crop_scale, settings.cached_views, seed, files.views, observer)
        made.append(files.views)
    write_record(files.folder, made, [parameters.seed], made_from, parameters=parameters)
    embedding.remove_shards()


def embed_frozen_share(workspace: Workspace, parameters: PretrainStage, engine: Engine, observer: Observer) -> Path:
    """Embed a share of the images into shards that `embed_frozen` uses; other shares may run beside it.

    Returns:
        The folder of the shards.

    Raises:
        UserError: as in `embed_frozen`, or a network is to be trained.
    """
    parameters = PretrainStage.of(parameters)
    if not parameters.network.is_frozen:
        raise UserError("--shard is for the features of a frozen backbone; training is no work of independent shares")
    store, backbone = open_store(workspace.store), parse_backbone(parameters.network.backbone)
    embedding = StoreEmbedding(workspace, store, parameters.device, engine, observer)
    with TemporaryDirectory(prefix="backbone-") as folder:
        encoder = Path(folder) / "encoder.onnx"
        write_frozen_encoder(backbone, store.manifest.image_size, encoder)
        settle_precision(encoder, parameters.precision, embedding.own_device, store.training_images)
        embedding.write(encoder, None, f"features by {backbone.kind}")
    return embedding.folders[0]
