"""A training of a table: pretraining or fine-tuning in a workspace of its own, and the scores of the features after it.

Any process can do it that sees the folders of the packed images and of the workspace. Scores are written last.
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import torch
from pydantic import RootModel

from conr.data.store import open_store
from conr.errors import UserError
from conr.evaluation.evaluate import evaluate_store
from conr.files import load_json, write_json
from conr.models.siamese import Network
from conr.parameters import Parameters
from conr.pipeline.finetune import finetune
from conr.pipeline.pretrain import pretrain
from conr.pipeline.workspace import TrainingFiles, Workspace
from conr.training.checkpoints import Checkpoint
from conr.training.compute import Compute, clean_features
from conr.training.weights import load_weights

_Scores = RootModel[dict[str, float]]


@dataclass(frozen=True)
class Training:
    """A training with one seed.

    Attributes:
        stage: "pretrain" or "finetune".
        name: for messages.
        parameters: of the stage and of the scores.
        packed: whose store is trained on.
        workspace: of the training alone.
        parent: the workspace of the pretraining that a finetuning starts from.
    """

    stage: str
    name: str
    parameters: Parameters
    packed: Workspace
    workspace: Workspace
    parent: Workspace | None = None

    @property
    def files(self) -> TrainingFiles:
        """What the stage leaves."""
        own = self.workspace
        return own.pretrained if self.stage == "pretrain" else own.finetuned(self.parameters.seed)

    @property
    def scores_file(self) -> Path:
        """The scores, which show that the training is finished."""
        return self.workspace.root / "scores.json"

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the features after the training.

        Raises:
            UserError: their file is missing or damaged.
        """
        return load_json(self.scores_file, _Scores, "delete its folder and run the same command again").root

    @property
    def epochs(self) -> int:
        """How many epochs the training has."""
        return int(getattr(self.parameters, self.stage).epochs)

    @property
    def epochs_done(self) -> int:
        """All of a training that has ended; of another one those that are saved."""
        if self.files.log.exists():
            return self.epochs
        return max((Checkpoint(folder).epochs for folder in self.workspace.checkpoint("").glob("*")), default=0)


def train(training: Training, threads: int) -> None:
    """Train and score. What an interrupted training has saved is kept; one that was only not scored is scored.

    Args:
        training: what to do.
        threads: of this process; also of the training, where `training.threads` is auto.

    Raises:
        UserError: the training failed; its name is in front.
    """
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    try:
        _train(training, threads)
    except UserError as error:
        raise UserError(f"{training.name}: {error}") from error


def _train(training: Training, threads: int) -> None:
    own, parameters = training.workspace, training.parameters
    if parameters.training.threads == "auto":
        parameters = parameters.changed({"training.threads": threads})
    own.borrow(training.packed, "artifacts/store")
    if training.parent is not None:
        own.borrow(training.parent, "artifacts/pretrain")
    if not training.files.log.exists():
        (pretrain if training.parent is None else finetune)(own, parameters)
    scores = score(own, training.parameters, load_weights(training.files.weights)[0].target)
    write_json(training.scores_file, _Scores(scores))
    if training.parent is not None:
        training.files.weights.unlink()  # nothing starts from them


def score(workspace: Workspace, parameters: Parameters, network: Network) -> dict[str, float]:
    """The scores of a network's features, in float32 as extract computes them, also where training uses bfloat16."""
    store = open_store(workspace.store)
    compute = Compute.choose(parameters.device, "float32")
    network.to(compute.device).to(memory_format=torch.channels_last)
    features = clean_features(network, compute.load_images(store.images), compute).cpu().numpy()
    return evaluate_store(features, store, parameters, parameters.seed).scores
