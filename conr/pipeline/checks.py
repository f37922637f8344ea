"""Parameters against the packed images, before hours of training."""

from conr.data.store import Manifest
from conr.errors import UserError
from conr.parameters import EvaluateStage, FinetuneStage, PretrainStage, Stage


def check_data(parameters: Stage, manifest: Manifest) -> None:
    """Check that parameters fit the images.

    Args:
        parameters: of a stage or of all; what a stage does not read is not checked.
        manifest: of the store.

    Raises:
        UserError: more clusters than images, a larger batch, or too many negatives.
    """
    images, training = (manifest.count, "images"), (manifest.train_count, "images to train on")
    if isinstance(parameters, FinetuneStage | EvaluateStage):
        _check("clusters", parameters.clusters, *images)
    if isinstance(parameters, PretrainStage):
        _check("pretrain.batch_size", parameters.pretrain.batch_size, *training)
    if isinstance(parameters, FinetuneStage):
        _check("finetune.batch_size", parameters.finetune.batch_size, *training)
    if isinstance(parameters, PretrainStage | FinetuneStage):
        settings = parameters.framework
        if settings.name == "moco" and settings.queue >= manifest.train_count:
            raise UserError(
                f"framework.queue = {settings.queue} is not smaller than the number of images to train on "
                f"({manifest.train_count}): every image would be among its own negatives; lower it"
            )
    if isinstance(parameters, EvaluateStage):
        context = parameters.evaluate.context
        size = min(context, manifest.train_count)
        if parameters.k1 > size:
            raise UserError(
                f"k1 = {parameters.k1} neighbors cannot be found among {size} images (evaluate.context = {context}, "
                f"{manifest.train_count:,} images to train on); raise evaluate.context or lower k1"
            )


def _check(name: str, value: int, limit: int, what: str) -> None:
    if value > limit:
        raise UserError(f"{name} = {value} is larger than the number of {what} ({limit}); lower it")
