"""cluster: a folder of images → a project of its own beside you, in which DVC runs all stages."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from conr.data.decode import dimensions, resize
from conr.data.folders import folder_state, images_below
from conr.data.reading import read_chunk
from conr.data.sources import check_folder
from conr.embedding.bfloat16 import open_embedder, settle_precision
from conr.embedding.frozen import write_frozen_encoder
from conr.embedding.session import run_batches
from conr.errors import UserError
from conr.files import atomic_file, copy_whole
from conr.models.backbones import Backbone, external_files, parse_backbone
from conr.parameters import Parameters
from conr.pipeline import params_file, project
from conr.pipeline.presets import preset_file
from conr.pipeline.workspace import Workspace
from conr.processes import cores

PRESET, FROM_SCRATCH = "folder", "folder-scratch"
SIZES = (32, 48, 64, 96, 128, 160, 192, 224)  # of the packed images: no larger than half of them are
START_UP, PROPOSING, EVALUATION, EVALUATION_OF_IMAGE = 4.0, 8.0, 8.0, 9e-4  # seconds
TIMED = 8  # images
SAMPLE = 24  # images that are read to see how large they are and how long reading takes
REFINEMENT = {"pretrain.cached_views": 4, "finetune.epochs": 12, "finetune.batch_size": 512, "k": 20}


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        folder: of the images.
        project: the folder for everything that is made.
        images: how many there are.
        typical: the median of their widths and heights, in pixels.
        seconds: of each stage, expected; None if a network is trained.
        parameters: of the project.
        changes: key → value, of those that the project does not have yet.
        resumes: whether the project exists.
    """

    folder: Path
    project: Path
    images: int
    typical: tuple[int, int]
    seconds: dict[str, float] | None
    parameters: Parameters
    changes: dict[str, Any]
    resumes: bool

    @property
    def workspace(self) -> Workspace:
        """Where the results will be."""
        return Workspace.at(self.project)


def plan(
    folder: Path,
    clusters: str | None = None,
    output: Path | None = None,
    backbone: str | None = None,
    refine: bool = False,
    labels: str | None = None,
) -> Plan:
    """Look at a folder of images and settle the parameters of its project.

    Args:
        folder: searched at any depth.
        clusters: K, auto or a range; None for what the project has, at first auto.
        output: the project's folder; None for the current folder if it is the project of these images, else for
            conr-NAME in it.
        backbone: as network.backbone; None for what the project has, at first efficientnet-lite0.
        refine: whether ConNR trains heads on the features.
        labels: as prepare.labels, for scores only; None for what the project has, at first none.

    Raises:
        UserError: there is no image, or an argument is impossible; nothing has been written.
    """
    check_folder(folder)
    folder = folder.resolve()
    target = (_project_of(folder) if output is None else output).resolve()
    if target.is_relative_to(folder):
        if output is not None:
            raise UserError(f"--output {output} lies in {folder}, whose images are grouped; name a folder outside it")
        target = folder.parent / target.name
    resumes = (target / params_file.NAME).exists()
    if not resumes and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is no project of conr; name another folder with --output")
    items, _ = images_below(folder, str(folder), SIZES[-1], "crop")
    sample = [items[place] for place in np.linspace(0, len(items) - 1, min(SAMPLE, len(items))).astype(int)]
    sizes = [found for item in sample if (found := dimensions(folder / item.file))] or [(SIZES[-1], SIZES[-1])]
    width, height = np.median(np.array(sizes), axis=0).astype(int).tolist()
    started = time.perf_counter()
    pixels = [outcome for outcome in read_chunk([item.read for item in sample]) if not isinstance(outcome, str)]
    reading = (time.perf_counter() - started) / len(sample) * len(items) / cores()

    changes: dict[str, Any] = {}
    if not resumes:
        changes = {"prepare.path": str(folder)}
        fitting = [size for size in SIZES if size <= min(width, height)]
        changes["prepare.image_size"] = fitting[-1] if fitting else SIZES[0]
    given = {"clusters": clusters, "network.backbone": backbone, "prepare.labels": labels}
    changes |= {key: value for key, value in given.items() if value is not None}
    changes |= REFINEMENT if refine else {}
    if "clusters" in changes and str(changes["clusters"]).isdecimal():
        changes["clusters"] = int(changes["clusters"])
    given_backbone = None if backbone is None else parse_backbone(backbone)
    if given_backbone is not None and given_backbone.path is not None:
        inside = replace(given_backbone, path=Path("backbones", given_backbone.path.name))
        changes["network.backbone"] = str(inside)
    source = target / params_file.NAME if resumes else preset_for(backbone)
    parameters = params_file.read(source).changed(changes, "conr cluster")
    if resumes and Path(parameters.prepare.path).resolve() != folder:
        raise UserError(
            f"{target} is the project of another folder, {parameters.prepare.path}; name another one with --output"
        )
    seconds = None
    if parameters.network.is_frozen:
        own = parameters.network.backbone if backbone is None else backbone
        relative = target if backbone is None else None  # what the project names is relative to it
        embedding = _embedding(parse_backbone(own, relative), parameters, pixels)
        seconds = _expected(len(items), reading, embedding, isinstance(parameters.clusters, str))
    return Plan(folder, target, len(items), (width, height), seconds, parameters, changes, resumes)


def _project_of(folder: Path) -> Path:
    """The project of a folder of images, which one is in or which lies or will lie in the current folder."""
    if Path(params_file.NAME).exists():
        with suppress(UserError):
            prepare = params_file.read().prepare
            if prepare.source == "folder" and Path(prepare.path).resolve() == folder:
                return Path()
    return Path(f"conr-{folder.name}")


def _embedding(backbone: Backbone, parameters: Parameters, pixels: list[NDArray[np.uint8]]) -> float:
    """Seconds of an image through a backbone on one core; the backbone is refused here if it cannot be used."""
    size = parameters.prepare.image_size
    images = np.stack([resize(image, size) for image in pixels[:TIMED]] or [np.zeros((size, size, 3), np.uint8)])
    with TemporaryDirectory() as folder:
        encoder = Path(folder) / "encoder.onnx"
        write_frozen_encoder(backbone, size, encoder)
        settle_precision(encoder, parameters.precision, "cpu", images)
        session = open_embedder(encoder, "cpu")
        run_batches(session, images)  # the first time takes longer
        started = time.perf_counter()
        run_batches(session, images)
        return (time.perf_counter() - started) / len(images)


def _expected(images: int, reading: float, embedding: float, proposes: bool) -> dict[str, float]:
    """Seconds of each stage: what was just timed, and what else the stages took on two cores of an Intel Xeon."""
    return {
        "prepare": START_UP + reading,
        "pretrain": START_UP + images * embedding / cores(),
        "finetune": START_UP + (PROPOSING if proposes else 0),
        "extract": START_UP,
        "evaluate": START_UP + EVALUATION + images * EVALUATION_OF_IMAGE,
    }


def preset_for(backbone: str | None) -> Path:
    """The file that a project with a backbone starts from."""
    return preset_file(FROM_SCRATCH if backbone == "scratch" else PRESET)


def prepare_project(plan: Plan, backbone: str | None) -> None:
    """Make the project, or change its parameters; the file of a backbone is copied into it, where DVC watches it."""
    if not plan.resumes:
        project.make(plan.project, preset_for(backbone).stem, git=False)
    if backbone is not None and parse_backbone(backbone).path is not None:
        given = parse_backbone(backbone)
        assert given.path is not None
        for path in (given.path, given.card, *external_files(given.path)):
            if path is not None and path.is_file():
                copy_whole(path, plan.project / "backbones" / path.name)
    if plan.changes:
        _change(plan.project / params_file.NAME, plan.changes)


def _change(path: Path, changes: dict[str, Any]) -> None:
    """Change values in a YAML file, whose comments stay."""
    yaml = YAML()
    yaml.width = 1 << 20
    content = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *groups, name = key.split(".")
        group = content
        for part in groups:
            group = group[part]
        group[name] = value
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def has_changed(plan: Plan) -> bool:
    """Whether the folder of images is another than when it was packed, or this is not known.

    DVC does not always know: it looks at the folder once the stage has ended, and takes files that came while the
    stage read the folder for files that the stage has read.
    """
    before = plan.workspace.packed_folder
    try:
        now = folder_state(plan.folder, str(plan.folder), plan.parameters.prepare.exclude)
    except UserError:  # it is gone
        return True
    return not before.exists() or before.read_text(encoding="utf-8") != now


def remove_unused(plan: Plan) -> None:
    """Delete a project in which nothing has been made, so that a mistake leaves nothing behind."""
    if not plan.resumes and not plan.workspace.store.exists():
        with suppress(OSError):
            shutil.rmtree(plan.project)
