"""Clustering in one call: images in, clusters out, by all stages of the pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from conr.data.folders import images_below
from conr.data.items import Source, arranged
from conr.data.sources import array_source
from conr.errors import UserError
from conr.observer import SILENT, Observer
from conr.parameters import Parameters
from conr.pipeline.assign import embed_items, open_encoder
from conr.pipeline.evaluate import evaluate
from conr.pipeline.extract import extract
from conr.pipeline.finetune import finetune
from conr.pipeline.prepare import prepare
from conr.pipeline.presets import load_preset
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import Workspace

Images = str | Path | NDArray[np.uint8]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        workspace: the folder of the run; `workspace.report` is the page.
        files: the N images' names.
        assignments: (N,) int64, the cluster of each; the largest cluster is 0.
        embeddings: (N, D) float32 unit vectors.
        scores: key → value (`conr.evaluation.scores.SCORES`); acc, nmi and ari only with labels.

    >>> result.assign(images[:5]).tolist() == result.assignments[:5].tolist()
    True
    """

    workspace: Workspace
    files: list[str] = field(repr=False)
    assignments: NDArray[np.int64] = field(repr=False)
    embeddings: NDArray[np.float32] = field(repr=False)
    scores: dict[str, float]
    _temporary: TemporaryDirectory[str] | None = field(default=None, repr=False)  # deleted with the result

    def assign(self, images: Images, device: str = "auto") -> NDArray[np.int64]:
        """The clusters of new images, (M,).

        Args:
            images: a folder, in the sorted order of its files at any depth; or (M, H, W, 3) uint8.
            device: "cpu", "cuda" or "auto".

        Returns:
            (M,) int64, −1 for a file that cannot be read.

        Raises:
            UserError: the folder holds no image.
        """
        encoder = open_encoder(self.workspace, device)
        items = _source(images, None, encoder.image_size, encoder.fit).items
        embeddings, reasons = embed_items(encoder, items)
        clusters = np.full(len(items), -1)
        clusters[[not reason for reason in reasons]] = encoder.assign(embeddings).clusters
        return clusters


def cluster(
    images: Images,
    clusters: int | str | None = None,
    workspace: Workspace | None = None,
    *,
    backbone: str | None = None,
    parameters: Parameters | None = None,
    labels: Sequence[object] | None = None,
    observer: Observer = SILENT,
) -> Result:
    """Cluster images without labels: describe or train, embed, cluster and write the report.

    Args:
        images: a folder of images, at any depth; or (N, H, W, 3) uint8.
        clusters: K; or auto or a range such as "5-30", in which it is proposed; None for what the parameters have.
        workspace: the folder for artifacts and results; None for a temporary one that is deleted with the result.
        backbone: as network.backbone, such as "onnx:dino.onnx"; None for what the parameters have.
        parameters: all hyperparameters; by default those of the preset folder: features of efficientnet-lite0 (which
            needs conr[pretrained]), a proposed number of clusters, clusters of the graph. With the backbone "scratch"
            those of folder-scratch.
        labels: (N,) of an array of images, for scores only; or None.
        observer: notified of everything that takes long.

    Raises:
        UserError: the images cannot be read, or the parameters do not fit them.

    >>> conr.cluster(images, 3, parameters=quick, labels=colors).scores["acc"] > 0.3
    True
    """
    temporary = None
    if workspace is None:
        temporary = TemporaryDirectory(prefix="conr-")
        workspace = Workspace.at(Path(temporary.name))
    own = parameters or _default(images, backbone)
    given = {"clusters": clusters, "network.backbone": backbone}
    own = own.changed({key: value for key, value in given.items() if value is not None} | {"seeds": []})
    source = _source(images, labels, own.prepare.image_size, own.prepare.fit)
    manifest = prepare(workspace, own, observer, source)
    pretrain(workspace, own, observer)
    finetune(workspace, own, observer)
    extract(workspace, own, observer)
    found = evaluate(workspace, own, observer).first
    embeddings = np.load(workspace.embeddings(own.seed))
    return Result(workspace, manifest.files, found.assignment.clusters, embeddings, found.scores, temporary)


def _source(images: Images, labels: Sequence[object] | None, image_size: int, fit: str) -> Source:
    if isinstance(images, str | Path):
        if labels is not None:
            raise UserError("labels can be given with an array of images only")
        items, skipped = images_below(Path(images), str(images), image_size, fit)
        return arranged(str(images), "all", items, skipped=skipped)
    return array_source(images, labels, image_size)


def _default(images: Images, backbone: str | None) -> Parameters:
    """The preset of a backbone; small images keep their size, and get the stem for small ones."""
    preset = load_preset("folder-scratch" if backbone == "scratch" else "folder")
    largest = preset.prepare.image_size
    size = largest if isinstance(images, str | Path) else max(images.shape[1:3], default=largest)
    if size >= largest:
        return preset
    return preset.changed({"prepare.image_size": size, "network.stem": "cifar" if size <= 32 else "imagenet"})
