"""Many trainings of one store: rows of parameters times seeds, side by side, each finished one kept.

What is finished is kept in scratch space under a fingerprint of everything it depends on: a run that is started again
goes on where it was, and rows that share their pretraining share it here, too. One thing is left out of the
fingerprint: how many threads a training has, which decides the order of sums and with it the last bits.
"""

import ctypes
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import faiss
import torch

from conr.data.store import open_store
from conr.errors import UserError
from conr.evaluation import evaluate
from conr.files import atomic_file
from conr.networks import Siamese
from conr.parameters import FinetuneStage, ParamsFile, PretrainStage
from conr.processes import Workers, cores
from conr.progress import Advance, Progress, silent
from conr.training.checkpoints import Checkpoint, fingerprint, load_weights, save_weights
from conr.training.compute import Compute, clean_features
from conr.training.group import finetune
from conr.training.instance import pretrain
from conr.training.log import Row, read_log, write_log
from stages.params_file import changed, check_together, view_of
from stages.paths import EXPERIMENTS, STORE
from stages.pretrain import fresh_model
from stages.scratch import scratch

SCORES = "scores.json"
WEIGHTS = "weights.safetensors"
LOG = "log.csv"
CHECKPOINT = "checkpoint"
POLL = 0.5  # seconds between looks at how many epochs are done
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
    """What came of one row with one seed.

    Attributes:
        pretrained: scores of the features before ConNR.
        finetuned: scores after it.
        curve: the log of the ConNR stage, a row an epoch.
        pretraining: the log of the stage before, likewise.
    """

    pretrained: dict[str, float]
    finetuned: dict[str, float]
    curve: list[dict[str, float]]
    pretraining: list[dict[str, float]]


@dataclass(frozen=True)
class _Run:
    """One row with one seed: its parameters, and the folders of its two stages."""

    params: ParamsFile
    before: Path
    after: Path


@dataclass(frozen=True)
class _Task:
    """A training: its name, what does it, for how many epochs, with how many threads, and after which other."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    epochs: int
    threads: int
    after: Path | None = None


def run_experiments(
    params: ParamsFile, experiments: Sequence[Experiment], seeds: Sequence[int], jobs: int, progress: Progress
) -> dict[str, list[Outcome]]:
    """Pretrain and fine-tune every row with every seed on the packed store.

    Args:
        params: what the rows have in common.
        experiments: the rows; they must not change `prepare`.
        seeds: each for pretraining, fine-tuning and k-means together.
        jobs: processes side by side at most; they share the processor's cores.
        progress: told of the epochs of all runs, those included that were done before.

    Returns:
        For each row, by name, its outcomes in the order of the seeds.

    Raises:
        UserError: parameters that contradict each other, found before anything runs; or a run that failed. The others
            are stopped, too: the user hears of it at once, and they go on from their checkpoints.
    """
    if not seeds:
        raise UserError("there is no seed to run with; name one at least")
    check_together(changed(params, {"seeds": list(seeds)}))
    runs = _runs(params, experiments, seeds)
    for run in runs.values():
        check_together(run.params)
    _side_by_side(_tasks(runs, jobs), jobs, progress)
    return {row.name: [_outcome(runs[row.name, seed]) for seed in seeds] for row in experiments}


def finished(
    params: ParamsFile, experiments: Sequence[Experiment], seeds: Sequence[int]
) -> dict[tuple[str, int], Outcome]:
    """What an interrupted `run_experiments` has finished, by name of the row and seed."""
    runs = _runs(params, experiments, seeds)
    return {key: _outcome(run) for key, run in runs.items() if (run.after / SCORES).exists()}


def _runs(params: ParamsFile, experiments: Sequence[Experiment], seeds: Sequence[int]) -> dict[tuple[str, int], _Run]:
    """Every row with every seed. Rows whose pretraining is the same share its folder."""
    manifest = open_store(STORE).manifest
    images = (manifest.checksum, manifest.train_count, manifest.score_start, manifest.labels)
    folder = scratch() / EXPERIMENTS
    runs = {}
    for row in experiments:
        for seed in seeds:
            own = changed(params, {**row.changes, "seed": seed, "seeds": []})
            before = folder / f"pretrain-{fingerprint(_pretraining(own), *images)}"
            after = folder / f"finetune-{fingerprint(own.model_dump(exclude={'prepare', 'extract'}), *images)}"
            runs[row.name, seed] = _Run(own, before, after)
    return runs


def _tasks(runs: Mapping[tuple[str, int], _Run], jobs: int) -> dict[Path, _Task]:
    """The trainings of all runs, by folder.

    Threads are shared among the trainings of a stage that can run side by side, however many are done already: a run
    that was stopped goes on with as many as it had.
    """

    def threads(trainings: int) -> int:
        return max(1, torch.get_num_threads() // min(jobs, trainings))

    before, after = (len({getattr(run, stage) for run in runs.values()}) for stage in ("before", "after"))
    pretrainings, finetunings = {}, {}
    for (row, seed), run in runs.items():
        params = run.params
        pretrainings[run.before] = _Task(
            f"pretraining for {row}, seed {seed}",
            _pretrain,
            (params, run.before),
            params.pretrain.epochs,
            threads(before),
        )
        finetunings[run.after] = _Task(
            f"{row}, seed {seed}",
            _finetune,
            (params, run.before, run.after),
            params.finetune.epochs,
            threads(after),
            run.before,
        )
    return pretrainings | finetunings


def _side_by_side(tasks: Mapping[Path, _Task], jobs: int, progress: Progress) -> None:
    """Do the tasks whose folder is not finished, each as soon as the one that it comes after is."""
    missing = {path: task for path, task in tasks.items() if not (path / SCORES).exists()}
    done = {path: Checkpoint(path / CHECKPOINT).epochs if path in missing else tasks[path].epochs for path in tasks}
    told = sum(done.values())
    with progress("experiments", sum(task.epochs for task in tasks.values()), done=told) as advance:
        if not missing:
            return
        # Each worker writes its own place, without a lock that it could hold when it is killed.
        epochs = RawArray(ctypes.c_int64, list(done.values()))
        places = {path: place for place, path in enumerate(done)}
        try:
            with Workers(min(jobs, len(missing)), _tell_in, (epochs,)) as pool:
                running: dict[Future[None], Path] = {}

                def submit(after: Path | None) -> None:
                    for path, task in missing.items():
                        if (task.after if task.after in missing else None) == after:
                            future = pool.submit(task.function, *task.arguments, task.threads, places[path])
                            running[future] = path

                try:
                    submit(None)
                    while running:
                        ended = wait(running, POLL, FIRST_COMPLETED).done
                        if sum(epochs) > told:
                            advance(sum(epochs) - told)
                            told = sum(epochs)
                        for future in ended:
                            path = running.pop(future)
                            try:
                                future.result()
                            except UserError as error:
                                raise UserError(f"{missing[path].name}: {error}") from error
                            submit(path)
                except BaseException:
                    pool.kill()  # what they have saved is kept
                    raise
        except BrokenProcessPool as error:
            raise UserError(
                "a training was killed, most likely for want of memory; run fewer side by side (--jobs), which goes on "
                f"after the last saved epoch, or {SMALLER}"
            ) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a training does not fit into the GPU's memory; {SMALLER}, or run fewer side by side (--jobs)"
            ) from error


def default_jobs(device: str) -> int:
    """As many processes as cores on a CPU; a GPU is one."""
    on_gpu = Compute.choose(device, "float32").device.type == "cuda"
    return 1 if on_gpu else cores()


def _pretraining(params: ParamsFile) -> dict[str, Any]:
    """What the pretrained features and their scores depend on."""
    return params.model_dump(include={*PretrainStage.model_fields, "clusters", "evaluate"})


def _tell_in(epochs: "ctypes.Array[ctypes.c_int64]") -> None:
    """Where the parent looks for the epochs of every training."""
    global _epochs
    _epochs = epochs


def _telling(place: int, epochs: int) -> Progress:
    """A `Progress` of steps that tells the parent how many epochs are done."""

    @contextmanager
    def progress(description: str, total: int, done: int = 0) -> Iterator[Advance]:
        def advance(amount: int, note: str = "") -> None:
            nonlocal done
            done += amount
            _epochs[place] = done * epochs // total

        yield advance

    return progress


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


def _pretrain(params: ParamsFile, folder: Path, threads: int, place: int) -> None:
    _use_threads(threads)
    stage = view_of(PretrainStage, params)
    store = open_store(STORE)
    model, description = fresh_model(stage, store.manifest)
    checkpoint = Checkpoint(folder / CHECKPOINT)
    progress = _telling(place, stage.pretrain.epochs)
    rows = pretrain(model, store.training_images, store.training_labels, stage, checkpoint, progress)
    save_weights(folder / WEIGHTS, model, description)
    _finish(params, folder, model, rows, checkpoint)


def _finetune(params: ParamsFile, pretrained: Path, folder: Path, threads: int, place: int) -> None:
    _use_threads(threads)
    stage = view_of(FinetuneStage, params)
    store = open_store(STORE)
    model, _ = load_weights(pretrained / WEIGHTS)
    checkpoint = Checkpoint(folder / CHECKPOINT)
    first_epoch = len(read_log(pretrained / LOG))
    images, labels = store.training_images, store.training_labels
    progress = _telling(place, stage.finetune.epochs)
    rows = finetune(model, images, labels, stage, first_epoch, checkpoint, progress)
    _finish(params, folder, model, rows, checkpoint)


def _finish(params: ParamsFile, folder: Path, model: Siamese, rows: list[Row], checkpoint: Checkpoint) -> None:
    """Score what was trained; the scores come last, as the sign that the run is whole."""
    write_log(folder / LOG, rows)
    store = open_store(STORE)
    compute = Compute.choose(params.device, "float32")  # as extract does, whatever the precision of the training
    features = clean_features(model.target, compute.place(store.images), compute, silent, "features").cpu().numpy()
    settings = params.evaluate
    scores = evaluate(
        features,
        store.labels,
        params.clusters,
        restarts=settings.restarts,
        iterations=settings.iterations,
        seed=params.seed,
        clustered=store.clustered,
        scored=store.scored,
    ).scores
    with atomic_file(folder / SCORES) as temporary:
        temporary.write_text(json.dumps(scores))
    checkpoint.remove()


def _outcome(run: _Run) -> Outcome:
    pretrained, finetuned = (json.loads((folder / SCORES).read_text()) for folder in (run.before, run.after))
    return Outcome(pretrained, finetuned, read_log(run.after / LOG), read_log(run.before / LOG))
