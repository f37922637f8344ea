"""The weights that leave a training stage: a safetensors file that says what its networks are built from."""

from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from conr.errors import UserError, one_line
from conr.files import atomic_file
from conr.frameworks import framework_class
from conr.models.batch_norm import group_batch_norm
from conr.models.resnet import Encoder
from conr.models.siamese import Network, Siamese


class ModelSpec(BaseModel):
    """What networks are built from, and what a weights file records.

    Attributes:
        architecture, width, stem: of the encoder (`conr.models.resnet.Encoder`).
        hidden, dimension: of the heads.
        bn_group: samples that share batch-norm statistics; 0 for the whole batch.
        predictor_init_std: standard deviation of the initial weights of BYOL's predictor.
        framework: whose heads and target network they have.
        mean, std: per channel, of the training images' pixels scaled to [0, 1].

    >>> spec = conr.ModelSpec(width=8, hidden=32, dimension=16)
    >>> sum(parameter.numel() for parameter in spec.build(seed=0).online.parameters())
    178424
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    architecture: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    width: int = 64
    stem: Literal["cifar", "imagenet"] = "cifar"
    hidden: int = 4096
    dimension: int = 256
    bn_group: int = 0
    predictor_init_std: float = 0.01
    framework: str = "byol"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def build(self, seed: int | None = None) -> Siamese:
        """Freshly initialized networks.

        Args:
            seed: of their weights; None if they are overwritten anyway.
        """
        if seed is not None:
            torch.manual_seed(seed)
        framework = framework_class(self.framework)
        encoder = Encoder(self.architecture, self.width, self.stem)
        projector = framework.projector(encoder.features, self.hidden, self.dimension)
        network = Network(encoder, projector, self.mean, self.std)
        predictor = framework.predictor(self.dimension, self.hidden, self.predictor_init_std)
        for module in (network, predictor):
            group_batch_norm(module, self.bn_group)
        return Siamese(network, predictor, framework.moving_average, shuffles_target=self.bn_group > 0)


class _Origin(BaseModel):
    """The metadata of a weights file: what its networks are built from, and for how many epochs they were trained."""

    model_config = ConfigDict(extra="forbid", strict=True)

    spec: ModelSpec
    epochs: int


def save_weights(path: Path, model: Siamese, spec: ModelSpec, epochs: int) -> None:
    """Write all weights of both networks and the predictor as .safetensors.

    The file also records what the networks were built from, and for how many epochs they have been trained.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # In one entry: safetensors writes several in an order that changes, and equal weights should be equal files.
    metadata = {"conr": _Origin(spec=spec, epochs=epochs).model_dump_json()}
    with atomic_file(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata=metadata))


def load_weights(path: Path) -> tuple[Siamese, ModelSpec, int]:
    """Rebuild the networks that `save_weights` wrote.

    Returns:
        The model on the CPU, what it is built from, and the epochs that it has been trained for.

    Raises:
        UserError: the file is missing, damaged or not one of ours.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; run the stage before this one first (dvc repro runs all in order)")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            origin = _Origin.model_validate_json(file.metadata()["conr"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if missing := ModelSpec.model_fields.keys() - origin.spec.model_fields_set:
            raise ValueError(f"its description lacks {', '.join(sorted(missing))}")
        model = origin.spec.build()
        model.load_state_dict(tensors)
    except (SafetensorError, ValidationError, KeyError, TypeError, ValueError, RuntimeError) as error:
        why = one_line(error)
        raise UserError(f"{path} is not a whole conr weights file ({why}); delete it and rerun its stage") from error
    return model, origin.spec, origin.epochs
