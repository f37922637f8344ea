"""Many trainings of one store: rows of parameters times seeds, side by side, each finished one kept.

Each training has a workspace of its own in scratch space, named by a fingerprint of everything it depends on: the same
experiments started again resume where they were, and rows that share their pretraining share it here, too. One thing is
left out of the fingerprint: how many threads a training has, which changes the order of sums and so the last bits.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from conr.data.store import open_store
from conr.embedding.engines.settings import LOCAL, Engine
from conr.errors import UserError
from conr.observer import Observer
from conr.parameters import Parameters, PretrainStage
from conr.pipeline.checks import check_data, fit_batches
from conr.pipeline.executors import executor
from conr.pipeline.records import NO_OTHER_RUN
from conr.pipeline.trainings import Training
from conr.pipeline.workspace import Workspace
from conr.training.checkpoints import fingerprint
from conr.training.log import read_log

POLL = 0.5  # seconds between checks of how many epochs are done


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


def run_experiments(
    workspace: Workspace,
    parameters: Parameters,
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    jobs: int,
    observer: Observer,
    engine: Engine = LOCAL,
) -> dict[str, list[Outcome]]:
    """Pretrain and fine-tune every row with every seed on the packed store.

    Args:
        workspace: whose store is trained on; the trainings' own workspaces are in its scratch space.
        parameters: what the rows have in common.
        experiments: the rows; they must not change `prepare`.
        seeds: each for pretraining, fine-tuning and k-means.
        jobs: trainings side by side at most, which share the cores; 0 for one per core, or per GPU where they use GPUs.
        observer: notified of the epochs of all runs that are saved, those included that were done before.
        engine: where the trainings run. None changes the results, but for the last bits on other processors.

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
    trainings = {
        run.workspace: run for stage in zip(*runs.values(), strict=True) for run in stage
    }  # pretrainings first
    _side_by_side(trainings, engine, jobs, parameters.device, observer)
    return {
        row.name: [
            Outcome(before.scores, after.scores, read_log(after.files.log), read_log(before.files.log))
            for before, after in (runs[row.name, seed] for seed in seeds)
        ]
        for row in experiments
    }


def _runs(
    workspace: Workspace, parameters: Parameters, experiments: Sequence[Experiment], seeds: Sequence[int]
) -> dict[tuple[str, int], tuple[Training, Training]]:
    """The pretraining and the finetuning of every row with every seed. Equal pretrainings are one."""
    manifest = open_store(workspace.store).manifest
    images = (manifest.checksum, manifest.train_count, manifest.score_start, manifest.labels)
    packed = Workspace(workspace.root.absolute(), workspace.scratch.absolute())  # for processes in other folders
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
                Workspace.at(packed.experiments / name) for name in (f"pretrain-{first}", f"finetune-{second}")
            )
            runs[row.name, seed] = (
                Training("pretrain", f"pretraining for {row.name}, seed {seed}", own, packed, before),
                Training("finetune", f"{row.name}, seed {seed}", own, packed, after, before),
            )
    return runs


def _side_by_side(
    trainings: Mapping[Workspace, Training], engine: Engine, jobs: int, device: str, observer: Observer
) -> None:
    """Do what is not finished, each training as soon as the one that it starts from is.

    Threads are shared among the trainings of a stage that can run side by side, however many are done already: a run
    that was stopped resumes with as many as it had.
    """
    stages = [training.stage for training in trainings.values()]
    missing = {key: training for key, training in trainings.items() if not training.scores_file.exists()}
    done = {key: training.epochs_done for key, training in trainings.items()}
    reported = sum(done.values())
    with observer.task("experiments", sum(training.epochs for training in trainings.values()), done=reported):
        if not missing:
            return
        with executor(engine, jobs, device) as pool:
            running: dict[Future[None], Workspace] = {}
            while missing:
                waiting = [key for key in missing if key not in running.values()]
                ready = [key for key in waiting if missing[key].parent not in missing]
                for key in ready[: pool.jobs - len(running)]:
                    running[pool.submit(missing[key], pool.share(stages.count(missing[key].stage)))] = key
                ended = wait(running, POLL, FIRST_COMPLETED).done
                for key in running.values():
                    done[key] = max(done[key], missing[key].epochs_done)
                if sum(done.values()) > reported:
                    observer.step_done(sum(done.values()) - reported)
                    reported = sum(done.values())
                for future in ended:
                    future.result()
                    _check_finished(missing.pop(running.pop(future)))


def _check_finished(training: Training) -> None:
    """Refuse what another machine has written to a folder of its own."""
    if not training.scores_file.exists():
        raise UserError(
            f"{training.name} has ended, but {training.scores_file} does not exist here; the project must be in a "
            "folder that all nodes of the Ray cluster share. If it is, run the same command again"
        )
