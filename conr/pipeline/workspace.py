"""The folder of a run: the path of every artifact and result, and the record of what they were made from.

dvc.yaml names the same paths. Several workspaces can exist side by side in one process: a stage, an ablation's rows, an
estimate and a notebook each have their own.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict

from conr.processes import BusyError, exclusive

RECORD = "record.json"
ENDING = 5.0  # seconds in which a process that was stopped has ended

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Record(BaseModel):
    """What a stage made, and from what. Written last, so that a record shows that the outputs are complete.

    Attributes:
        seeds: those that it was run with, in order.
        made: file in the folder of the record → SHA-256 of what was written.
        made_from: name of an artifact → what identified it, such as a SHA-256.
        precision: number format of the encoder, where there is one.
        clusters: K, once it is settled.
        method: of clustering, where there are clusters.
        parameters: key → value, of the stage that made it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seeds: list[int]
    made: dict[str, str]
    made_from: dict[str, str]
    precision: str | None = None
    clusters: int | None = None
    method: str | None = None
    parameters: dict[str, Any] | None = None


class _Below:
    """A path below the root of a workspace."""

    def __init__(self, path: str, meaning: str) -> None:
        self.path, self.__doc__ = path, meaning

    def __get__(self, workspace: "Workspace", owner: type) -> Path:
        return workspace.root / self.path


class TrainingFiles:
    """What a training stage leaves in a folder.

    Attributes:
        folder: of all of them.
        weights: all weights, with what the networks are built from; those of heads on frozen features, too. There are
            none where nothing was trained.
        log: one row per epoch.
        encoder: a frozen backbone as ONNX, from uint8 images to unit vectors.
        features: of all images by a frozen backbone, (N, D).
        views: those of V random views of each image, (V, N, D).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights, self.log = folder / "weights.safetensors", folder / "log.csv"
        self.encoder, self.features, self.views = (
            folder / name for name in ("encoder.onnx", "features.npy", "views.npy")
        )

    @property
    def network(self) -> Path:
        """The file that identifies the network: the weights, or a frozen backbone."""
        return self.encoder if self.encoder.exists() else self.weights

    @property
    def is_frozen(self) -> bool:
        """Whether this is a frozen backbone and its features, which no training has made."""
        return self.encoder.exists() and not self.weights.exists()


@dataclass(frozen=True)
class Workspace:
    """The folders of a run.

    Attributes:
        root: artifacts and results are below it.
        scratch: unfinished trainings and finished experiments are below it. DVC deletes the outputs of a stage before
            it runs it again, and runs experiments in copies of the root: what must survive that is here.

    >>> conr.Workspace.at(Path("photos")).finetuned(seed=0).weights.as_posix()
    'photos/artifacts/finetune/0/weights.safetensors'
    """

    root: Path = Path()
    scratch: Path = Path(".conr")

    store = _Below("artifacts/store", "The packed images, a folder.")
    refined = _Below("artifacts/finetune", "The folder of all seeds of group concordance, and its record.")
    proposal = _Below("artifacts/finetune/clusters.json", "How the number of clusters was proposed, if it was.")
    encoder = _Below("artifacts/encoder.onnx", "The first seed's, as ONNX.")
    embedded = _Below("artifacts/embeddings", "The folder of all embeddings, and their record.")
    results = _Below("results", "The folder of all results, and the record of the centroids.")
    metrics = _Below("results/metrics.json", "The scores, for DVC.")
    summary = _Below("results/summary.txt", "The scores as text.")
    assignments = _Below("results/assignments.csv", "Which cluster each image is in.")
    explorable = _Below("results/assignments.parquet", "The same with thumbnails and neighbors, for explorers.")
    clusterer = _Below("results/clusterer.onnx", "Encoder and clusters as one ONNX file.")
    names = _Below("cluster_names.csv", "Names of clusters, which people write.")
    centroids = _Below("results/centroids.npy", "Of the clusters, in the encoder's space.")
    ballots = _Below("results/ballots.npy", "Of a graph, by which new images are assigned; without rows if not needed.")
    report = _Below("results/report.html", "The page.")
    figures = _Below("results/figures", "The folder of figures.")
    plots = _Below("results/plots", "The folder of tables that DVC plots.")
    proposals = _Below("results/proposals", "The folder of what `conr clusters` compared.")
    sweeps = _Below("results/sweeps", "The folder of figures over DVC's experiments.")
    ablation = _Below("results/ablation", "The folder of the ablation's table and curves.")

    @classmethod
    def here(cls) -> "Workspace":
        """The current folder; DVC says where the real repository is when it runs an experiment in a copy."""
        return cls(Path(), Path(os.environ.get("DVC_ROOT", ".")) / ".conr")

    @classmethod
    def at(cls, folder: Path) -> "Workspace":
        """A folder, with its scratch space inside."""
        return cls(folder, folder / ".conr")

    @property
    def pretrained(self) -> TrainingFiles:
        """Of instance concordance."""
        return TrainingFiles(self.root / "artifacts/pretrain")

    def finetuned(self, seed: int) -> TrainingFiles:
        """Of group concordance with one seed."""
        return TrainingFiles(self.refined / str(seed))

    def embeddings(self, seed: int | None = None) -> Path:
        """Of all images after group concordance with a seed; None for those before it."""
        return self.embedded / ("pretrained.npy" if seed is None else f"{seed}.npy")

    @property
    def experiments(self) -> Path:
        """The folder of workspaces, one for each training of the rows of a table."""
        return self.scratch / "experiments"

    def shards(self, name: str) -> Path:
        """The folder of embeddings of which not all are there yet."""
        return self.scratch / "shards" / name

    @property
    def locks(self) -> Path:
        """The folder of what keeps two processes from the same work."""
        return self.scratch / "locks"

    @property
    def packed_folder(self) -> Path:
        """What the folder of images was like when its packing began (`conr.data.folders.folder_state`)."""
        return self.scratch / "packed_folder.txt"

    def checkpoint(self, name: str) -> Path:
        """The folder of the state of an unfinished training."""
        return self.scratch / "checkpoints" / name

    @contextmanager
    def own_checkpoint(self, name: str) -> Iterator[Path]:
        """A folder of the state of an unfinished training that no other process uses meanwhile.

        DVC's experiments share scratch space: where two of them train the same, the second has a folder of its own.
        """
        with ExitStack() as held:
            for number in count(1):
                own = name if number == 1 else f"{name}-{number}"
                with suppress(BusyError):
                    held.enter_context(exclusive(self.locks / f"{own}.lock", own))
                    break
            yield self.checkpoint(own)

    def remove_checkpoints(self, pattern: str) -> None:
        """Delete the states whose names match a pattern, but for those that a process works on."""
        for folder in self.checkpoint("").glob(pattern):
            with suppress(BusyError), exclusive(self.locks / f"{folder.name}.lock", folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from writing here meanwhile.

        Raises:
            UserError: another process does; it is named.
        """
        name = hashlib.sha256(os.fsencode(self.root.absolute())).hexdigest()[:16]
        with exclusive(self.locks / f"{name}.lock", str(self.root.absolute()), ENDING):
            yield

    def outside(self, path: str) -> Path:
        """A path that DVC does not track: relative to the real repository, not to a copy of it."""
        return self.scratch.parent / Path(path).expanduser()

    def borrow(self, other: "Workspace", *artifacts: str) -> None:
        """Take over artifacts of another workspace, named relative to the root, as links."""
        for artifact in artifacts:
            link = self.root / artifact
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to((other.root / artifact).resolve())


def writes(
    body: Callable[Concatenate[Workspace, Given], Result],
) -> Callable[Concatenate[Workspace, Given], Result]:
    """The body of a stage, which has the workspace to itself as long as it runs."""

    @wraps(body)
    def alone(workspace: Workspace, /, *arguments: Given.args, **named: Given.kwargs) -> Result:
        with workspace.locked():
            return body(workspace, *arguments, **named)

    return alone
