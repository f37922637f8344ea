"""Parameters against the packed images, before hours of training."""

import warnings
from collections.abc import Iterator
from typing import TypeVar

from conr.data.store import Manifest
from conr.errors import Note, UserError
from conr.parameters import EvaluateStage, FinetuneStage, PretrainStage, Stage

SMALLEST = 4  # pixels of a view, as of prepare.image_size

Given = TypeVar("Given", bound=Stage)


def fit_batches(parameters: Given, manifest: Manifest) -> Given:
    """The same parameters, with batches of at most the images to train on; a note names each that is reduced.

    The learning rate follows, as it does for every batch size.
    """
    fitted, notes = _fitted(parameters, manifest)
    for note in notes:
        warnings.warn(Note(note), stacklevel=2)
    return fitted


def check_data(parameters: Stage, manifest: Manifest, refined: bool = True) -> None:
    """Check that parameters fit the images.

    Args:
        parameters: of a stage or of all; what a stage does not read is not checked.
        manifest: of the store.
        refined: whether ConNR changes the features; where that is not known from the parameters.

    Raises:
        UserError: naming all that does not fit, such as more clusters than images, or too many negatives.
    """
    problems = list(_problems(_fitted(parameters, manifest)[0], manifest, refined))
    if problems:
        raise UserError("; also, ".join(problems))


def _fitted(parameters: Given, manifest: Manifest) -> tuple[Given, list[str]]:
    notes, images = [], manifest.train_count
    largest = max(images - images % 2, 2)  # even: no group of one sample is left for batch normalization
    for stage in ("pretrain", "finetune"):
        settings = getattr(parameters, stage, None)
        if settings is not None and settings.batch_size > images:
            notes.append(
                f"{stage}.batch_size = {settings.batch_size} is larger than the number of images to train on "
                f"({images}); {largest} is used"
            )
            reduced = settings.model_copy(update={"batch_size": largest})
            parameters = parameters.model_copy(update={stage: reduced})
    return parameters, notes


def _problems(parameters: Stage, manifest: Manifest, refined: bool = True) -> Iterator[str]:
    frozen = isinstance(parameters, PretrainStage) and parameters.network.is_frozen
    refined = refined and not (isinstance(parameters, FinetuneStage) and parameters.finetune.epochs == 0)
    training = manifest.train_count, "images to train on"
    limits = [training] if isinstance(parameters, FinetuneStage) else []
    if isinstance(parameters, EvaluateStage):
        held_out = manifest.protocol == "held-out"
        limits.append(training if held_out else (manifest.count - manifest.score_start, "images to cluster"))
    if isinstance(parameters, FinetuneStage | EvaluateStage):
        yield from _too_many("clusters", parameters.candidates[0], *min(limits, key=lambda limit: limit[0]))
    if isinstance(parameters, FinetuneStage) and refined:
        for name, neighbors in (("k", parameters.k), ("k1", parameters.k1)):
            yield from _too_many(name, neighbors, parameters.finetune.batch_size, "images in a batch")
    trains = (isinstance(parameters, PretrainStage) and not frozen) or (
        isinstance(parameters, FinetuneStage) and refined
    )
    if isinstance(parameters, PretrainStage | FinetuneStage) and trains:
        settings = parameters.framework
        yield from _too_small(parameters.views.resolution, manifest.image_size)
        if manifest.train_count < 2:
            yield "there is one image to train on, and a batch needs two; add images and run conr prepare again"
        if settings.name == "moco" and settings.queue >= manifest.train_count:
            yield (
                f"framework.queue = {settings.queue} is not smaller than the number of images to train on "
                f"({manifest.train_count}): every image would be among its own negatives; lower it"
            )
    if isinstance(parameters, PretrainStage) and parameters.pretrain.scattering > 0 and not frozen:
        yield from _too_many("pretrain.prototypes", parameters.pretrain.prototypes, *training)
    if isinstance(parameters, EvaluateStage) and refined:
        context = parameters.evaluate.context
        size = min(context, manifest.train_count)
        if parameters.k1 > size:
            yield (
                f"k1 = {parameters.k1} neighbors cannot be found among {size} images (evaluate.context = {context}, "
                f"{manifest.train_count:,} images to train on); raise evaluate.context or lower k1"
            )


def _too_small(resolution: list[list[float]], side: int) -> Iterator[str]:
    smallest = min((scale for _, scale in resolution), default=1.0)
    if resolution and smallest * side < SMALLEST:
        yield (
            f"views.resolution = {resolution}: {smallest:g} of an image's {side} pixels is less than {SMALLEST}; use "
            f"sizes of at least {SMALLEST / side:g}"
        )


def _too_many(name: str, value: int, limit: int, what: str) -> Iterator[str]:
    if value > limit:
        yield f"{name} = {value} is larger than the number of {what} ({limit}); lower it"
