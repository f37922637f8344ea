"""Many trainings of one store: rows of parameters times seeds, side by side, each finished one kept.

What is finished is kept in scratch space under a fingerprint of everything it depends on: a run that is started again
goes on where it was, and rows that share their pretraining share it here, too.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import torch

from conr.data.store import open_store
from conr.errors import UserError
from conr.evaluation import evaluate
from conr.files import atomic_file
from conr.parameters import FinetuneStage, ParamsFile, PretrainStage
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

Task = tuple[Callable[..., None], tuple[Any, ...], int]  # function, arguments, and epochs for the progress


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


def run_experiments(
    params: ParamsFile, experiments: Sequence[Experiment], seeds: Sequence[int], jobs: int, progress: Progress
) -> dict[str, list[Outcome]]:
    """Pretrain and fine-tune every row with every seed on the packed store.

    Args:
        params: what the rows have in common.
        experiments: the rows; they must not change `prepare`.
        seeds: each for pretraining, fine-tuning and k-means together.
        jobs: processes side by side; they share the processor's cores.
        progress: told of the epochs of every run that is finished.

    Returns:
        For each row, by name, its outcomes in the order of the seeds.

    Raises:
        UserError: parameters that contradict each other, found before anything runs; or a run that failed.
    """
    if not seeds:
        raise UserError("there is no seed to run with; name one at least")
    check_together(changed(params, {"seeds": list(seeds)}))
    runs = _runs(params, experiments, seeds)
    for run in runs.values():
        check_together(run.params)
    pretrainings = {
        run.before: (_pretrain, (run.params, run.before), run.params.pretrain.epochs) for run in runs.values()
    }
    finetunings = {
        run.after: (_finetune, (run.params, run.before, run.after), run.params.finetune.epochs) for run in runs.values()
    }
    waiting_for = {run.after: run.before for run in runs.values()}
    with progress(
        "experiments", sum(epochs for _, _, epochs in (*pretrainings.values(), *finetunings.values()))
    ) as advance:
        _side_by_side(pretrainings | finetunings, waiting_for, jobs, advance)
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


def _side_by_side(tasks: Mapping[Path, Task], waiting_for: Mapping[Path, Path], jobs: int, advance: Advance) -> None:
    """Do the tasks whose folder is not finished, each as soon as the one that it waits for is."""
    missing = {path: task for path, task in tasks.items() if not (path / SCORES).exists()}
    advance(sum(epochs for path, (_, _, epochs) in tasks.items() if path not in missing))
    if not missing:
        return
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads in any state
    with ProcessPoolExecutor(min(jobs, len(missing)), context, _use_threads, (threads,)) as pool:
        running: dict[Future[None], Path] = {}

        def submit(paths: Iterable[Path]) -> None:
            for path in paths:
                function, arguments, _ = missing[path]
                running[pool.submit(function, *arguments)] = path

        submit([path for path in missing if waiting_for.get(path) not in missing])
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished = running.pop(future)
                    future.result()
                    advance(missing[finished][2])
                    submit([path for path in missing if waiting_for.get(path) == finished])
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what runs is finished and kept, what waits is not started
            raise


def default_jobs(device: str) -> int:
    """As many processes as cores, each with one thread, on a CPU; a GPU is one."""
    on_gpu = Compute.choose(device, "float32").device.type == "cuda"
    return 1 if on_gpu else os.cpu_count() or 1


def _pretraining(params: ParamsFile) -> dict[str, Any]:
    """What the pretrained features and their scores depend on."""
    return params.model_dump(include={*PretrainStage.model_fields, "clusters", "evaluate"})


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


def _pretrain(params: ParamsFile, folder: Path) -> None:
    stage = view_of(PretrainStage, params)
    store = open_store(STORE)
    model, description = fresh_model(stage, store.manifest)
    checkpoint = Checkpoint(folder / "checkpoint")
    rows = pretrain(model, store.training_images, store.training_labels, stage, checkpoint, silent)
    save_weights(folder / WEIGHTS, model, description)
    _finish(params, folder, rows, checkpoint)


def _finetune(params: ParamsFile, pretrained: Path, folder: Path) -> None:
    stage = view_of(FinetuneStage, params)
    store = open_store(STORE)
    model, description = load_weights(pretrained / WEIGHTS)
    checkpoint = Checkpoint(folder / "checkpoint")
    first_epoch = len(read_log(pretrained / LOG))
    images, labels = store.training_images, store.training_labels
    rows = finetune(model, images, labels, stage, first_epoch, checkpoint, silent)
    save_weights(folder / WEIGHTS, model, description)
    _finish(params, folder, rows, checkpoint)


def _finish(params: ParamsFile, folder: Path, rows: list[Row], checkpoint: Checkpoint) -> None:
    """Score what was trained; the scores come last, as the sign that the run is whole."""
    write_log(folder / LOG, rows)
    store = open_store(STORE)
    model, _ = load_weights(folder / WEIGHTS)
    compute = Compute.choose(params.device, params.precision)
    model.to(compute.device).to(memory_format=torch.channels_last)
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
