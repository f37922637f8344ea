"""Many trainings of one store: rows of parameters times seeds, side by side, each finished one kept.

Each training has a workspace of its own in scratch space, named by a fingerprint of everything it depends on: the same
experiments started again resume where they were, and rows that share their pretraining share it here, too. One thing is
left out of the fingerprint: how many threads a training has, which changes the order of sums and so the last bits.
"""

import ctypes
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import faiss
import torch
from pydantic import RootModel

from conr.data.store import open_store
from conr.errors import UserError
from conr.evaluation.evaluate import evaluate_store
from conr.files import load_json, write_json
from conr.models.siamese import Network
from conr.observer import Observer
from conr.parameters import Parameters, PretrainStage
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.finetune import finetune
from conr.pipeline.pretrain import pretrain
from conr.pipeline.records import NO_OTHER_RUN
from conr.pipeline.workspace import TrainingFiles, Workspace
from conr.processes import Workers, cores
from conr.training.checkpoints import Checkpoint, fingerprint
from conr.training.compute import Compute, clean_features
from conr.training.log import read_log
from conr.training.weights import load_weights

POLL = 0.5  # seconds between checks of how many epochs are done
SMALLER = "lower pretrain.batch_size, finetune.batch_size or network.width"

_epochs: "ctypes.Array[ctypes.c_int64]"  # in a worker: its parent's counters


@dataclass(frozen=True)
class Experiment:
    """A row of a table.

    Attributes:
        name: what to call it.
        changes: parameters that differ from the others', by dotted key, such as {"boundary.filter": "none"}.
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of one row with one seed.

    Attributes:
        pretrained: scores of the features before ConNR.
        finetuned: scores after it.
        curve: the log of the ConNR stage, one row per epoch.
        pretraining: the log of the stage before, likewise.
    """

    pretrained: dict[str, float]
    finetuned: dict[str, float]
    curve: list[dict[str, float]]
    pretraining: list[dict[str, float]]


_Scores = RootModel[dict[str, float]]  # of a training: written last, and so the sign that it is finished


@dataclass(frozen=True)
class _Run:
    """A training: its stage, its name for messages, its parameters and its workspace.

    Attributes:
        parent: the workspace of the pretraining that a finetuning starts from.
    """

    stage: str
    name: str
    parameters: Parameters
    workspace: Workspace
    parent: Workspace | None = None

    @property
    def files(self) -> TrainingFiles:
        own = self.workspace
        return own.pretrained if self.stage == "pretrain" else own.finetuned(self.parameters.seed)

    @property
    def scores_file(self) -> Path:
        return self.workspace.root / "scores.json"

    @property
    def scores(self) -> dict[str, float]:
        return load_json(self.scores_file, _Scores, "delete its folder and run the same command again").root

    @property
    def epochs(self) -> int:
        return int(getattr(self.parameters, self.stage).epochs)

    @property
    def epochs_done(self) -> int:
        """All of a training that has ended; of another one those that are saved."""
        if self.files.log.exists():
            return self.epochs
        return max((Checkpoint(folder).epochs for folder in self.workspace.checkpoint("").glob("*")), default=0)


def run_experiments(
    workspace: Workspace,
    parameters: Parameters,
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    jobs: int,
    observer: Observer,
) -> dict[str, list[Outcome]]:
    """Pretrain and fine-tune every row with every seed on the packed store.

    Args:
        workspace: whose store is trained on; the trainings' own workspaces are in its scratch space.
        parameters: what the rows have in common.
        experiments: the rows; they must not change `prepare`.
        seeds: each for pretraining, fine-tuning and k-means.
        jobs: processes side by side at most; they share the processor's cores.
        observer: notified of the epochs of all runs, those included that were done before.

    Returns:
        For each row, by name, its outcomes in the order of the seeds.

    Raises:
        UserError: parameters that contradict each other, found before anything runs; or a run that failed. The others
            are stopped at once, too, and resume from their checkpoints.
    """
    if not seeds:
        raise UserError("no seed is given; give at least one")
    parameters.changed({"seeds": list(seeds)})
    runs = _runs(workspace, parameters, experiments, seeds)
    trainings = {run.workspace: run for pair in runs.values() for run in pair}
    _side_by_side(workspace, trainings, jobs, observer)
    return {
        row.name: [
            Outcome(before.scores, after.scores, read_log(after.files.log), read_log(before.files.log))
            for before, after in (runs[row.name, seed] for seed in seeds)
        ]
        for row in experiments
    }


def default_jobs(device: str) -> int:
    """As many processes as cores on a CPU; a GPU is one."""
    on_gpu = Compute.choose(device, "float32").device.type == "cuda"
    return 1 if on_gpu else cores()


def _runs(
    workspace: Workspace, parameters: Parameters, experiments: Sequence[Experiment], seeds: Sequence[int]
) -> dict[tuple[str, int], tuple[_Run, _Run]]:
    """The pretraining and the finetuning of every row with every seed. Equal pretrainings are one."""
    manifest = open_store(workspace.store).manifest
    images = (manifest.checksum, manifest.train_count, manifest.score_start, manifest.labels)
    runs = {}
    if parameters.training.processes == "auto":  # the trainings themselves run side by side
        parameters = parameters.changed({"training.processes": 1})
    for row in experiments:
        for seed in seeds:
            own = parameters.changed({**row.changes, "seed": seed, "seeds": []})
            check_data(own, manifest)
            own = fit_batches(own, manifest)
            # What the pretrained features and their scores depend on; then what all depends on.
            shared = own.model_dump(include={*PretrainStage.model_fields, "clusters", "evaluate"}, exclude=NO_OTHER_RUN)
            first = fingerprint("pretrain", shared, *images)
            everything = own.model_dump(exclude={"prepare": True, "extract": True, **NO_OTHER_RUN})
            second = fingerprint("finetune", everything, *images)
            before, after = (
                Workspace.at(workspace.experiments / name) for name in (f"pretrain-{first}", f"finetune-{second}")
            )
            runs[row.name, seed] = (
                _Run("pretrain", f"pretraining for {row.name}, seed {seed}", own, before),
                _Run("finetune", f"{row.name}, seed {seed}", own, after, before),
            )
    return runs


def _side_by_side(workspace: Workspace, trainings: Mapping[Workspace, _Run], jobs: int, observer: Observer) -> None:
    """Do what is not finished, each training as soon as the one that it starts from is.

    Threads are shared among the trainings of a stage that can run side by side, however many are done already: a run
    that was stopped resumes with as many as it had.
    """
    stages = [run.stage for run in trainings.values()]
    threads = {stage: max(1, torch.get_num_threads() // min(jobs, stages.count(stage))) for stage in stages}
    missing = {key: run for key, run in trainings.items() if not run.scores_file.exists()}
    done = [run.epochs_done for run in trainings.values()]
    numbers = {key: number for number, key in enumerate(trainings)}
    reported = sum(done)
    with observer.task("experiments", sum(run.epochs for run in trainings.values()), done=reported):
        if not missing:
            return
        # Each worker writes its own number, without a lock that it could hold when it is killed.
        epochs = RawArray(ctypes.c_int64, done)
        try:
            with Workers(min(jobs, len(missing)), _count_in, (epochs,), kill_on_error=True) as pool:
                running: dict[Future[None], Workspace] = {}

                def submit(parent: Workspace | None) -> None:
                    for key, run in missing.items():
                        if (run.parent if run.parent in missing else None) == parent:
                            future = pool.submit(_train, run, workspace, threads[run.stage], numbers[key])
                            running[future] = key

                submit(None)
                while running:
                    ended = wait(running, POLL, FIRST_COMPLETED).done
                    if sum(epochs) > reported:
                        observer.step_done(sum(epochs) - reported)
                        reported = sum(epochs)
                    for future in ended:
                        key = running.pop(future)
                        _end(future, missing[key].name)
                        submit(key)
        except BrokenProcessPool as error:
            raise UserError(
                "a training was killed, most likely because memory ran out; run fewer side by side (--jobs), which "
                f"resumes after the last saved epoch, or {SMALLER}"
            ) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a training does not fit into the GPU's memory; {SMALLER}, or run fewer side by side (--jobs)"
            ) from error


def _end(future: "Future[None]", name: str) -> None:
    """Raise the error of a training that has failed, with its name in front."""
    try:
        future.result()
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


class _EpochCounter(Observer):
    """Counts the epochs that are done, for the parent process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        _epochs[self.number] += 1


def _count_in(epochs: "ctypes.Array[ctypes.c_int64]") -> None:
    """Where the parent looks for the epochs of every training."""
    global _epochs
    _epochs = epochs


def _train(run: _Run, workspace: Workspace, threads: int, number: int) -> None:
    """Train and score, in a worker process. What an interrupted one has trained is only scored."""
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    own, observer, parameters = run.workspace, _EpochCounter(number), run.parameters
    if parameters.training.threads == "auto":
        parameters = parameters.changed({"training.threads": threads})
    own.borrow(workspace, "artifacts/store")
    if run.parent is not None:
        own.borrow(run.parent, "artifacts/pretrain")
    if not run.files.log.exists():
        (pretrain if run.parent is None else finetune)(own, parameters, observer)
    scores = score(own, run.parameters, load_weights(run.files.weights)[0].target)
    write_json(run.scores_file, _Scores(scores))
    if run.parent is not None:
        run.files.weights.unlink()  # nothing starts from them


def score(workspace: Workspace, parameters: Parameters, network: Network) -> dict[str, float]:
    """The scores of a network's features, in float32 as extract computes them, also where training uses bfloat16."""
    store = open_store(workspace.store)
    compute = Compute.choose(parameters.device, "float32")
    network.to(compute.device).to(memory_format=torch.channels_last)
    features = clean_features(network, compute.load_images(store.images), compute).cpu().numpy()
    return evaluate_store(features, store, parameters, parameters.seed).scores
