"""The parameters of each stage, and of all stages; parameters that contradict each other are refused.

A stage receives exactly the keys that dvc.yaml lists for it, so that it cannot read what DVC does not track.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from conr.errors import UserError
from conr.neighbors.settings import ConAff
from conr.parameters.execution import Training, cannot_share
from conr.parameters.groups import (
    Boundary,
    Evaluate,
    Extract,
    Finetune,
    Framework,
    Group,
    Neighborhood,
    Network,
    Optimizer,
    Prepare,
    Pretrain,
    contradiction,
)
from conr.parameters.keys import explained, unknown
from conr.parameters.views import Views

Seed = Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of every random choice")]
Seeds = Annotated[
    list[Annotated[int, Field(ge=0, le=2**31 - 1)]],
    Field(description="Seeds of fine-tuning and evaluation, to report mean ± std; empty: only seed"),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Field(description="Where to compute; auto uses a GPU that PyTorch (in extract: onnxruntime) can use"),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(
        description="Number format of the forward passes; auto takes bfloat16 where the processor has it "
        "(for features of a frozen backbone, if OpenVINO is installed, too)"
    ),
]
AUTO, PROPOSED = "auto", range(2, 41)  # a number of clusters that is proposed, and the candidates for it
RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")


def _number_or_range(value: object) -> object:
    """What is written for clusters, if it can be."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and value >= 2):
        return value
    bounds = RANGE.fullmatch(value) if isinstance(value, str) else None
    if bounds and 2 <= int(bounds[1]) < int(bounds[2]):
        return value
    raise PydanticCustomError("clusters", "a number of at least 2, auto, or a range such as 2-40")


Clusters = Annotated[
    int | str,
    BeforeValidator(_number_or_range),
    Field(
        description="K, the number of clusters; auto, or a range such as 5-30: proposed from the features",
        examples=["K", "auto", "A-B"],
    ),
]
Neighbors = Annotated[int, Field(ge=1, description="k, contextually affinitive neighbors per sample (Eq. 7)")]
K1 = Annotated[int, Field(ge=1, description="k1, neighbors that define the reciprocal encoding (Eq. 3)")]
K2 = Annotated[int, Field(ge=1, description="k2, neighbors summed over in propagation (Eq. 5); 1 for none")]
FractionRatio = Annotated[
    float,
    Field(gt=0, le=1, description="fr, share of candidates at the first ConNR epoch (Eq. 12); 1 for all"),
]


class Stage(Group):
    """What the parameters of all stages share."""

    @classmethod
    def of(cls, parameters: "Stage") -> Self:
        """The keys that this stage reads, of parameters that have them."""
        return cls.model_validate({name: getattr(parameters, name) for name in cls.model_fields})


class PrepareStage(Stage):
    """The keys that `conr prepare` reads."""

    prepare: Prepare = Prepare()


class PretrainStage(Stage):
    """The keys that `conr pretrain` reads."""

    seed: Seed = 0
    device: Device = "auto"
    precision: Precision = "auto"
    network: Network = Network()
    framework: Framework = Framework()
    views: Views = Views()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    pretrain: Pretrain = Pretrain()

    @model_validator(mode="after")
    def _groups_divide_pretraining(self) -> Self:
        _check_divides(self.network.bn_group, self.training.processes, "pretrain", self.pretrain.batch_size)
        return self


class _Seeds(Stage):
    """Stages that are run once per seed."""

    seed: Seed = 0
    seeds: Seeds = []  # noqa: RUF012 (pydantic copies it)

    @property
    def all_seeds(self) -> list[int]:
        """The seeds to run with, in order; the first is the one that figures and encoder are of."""
        return self.seeds or [self.seed]

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise contradiction(f"seeds = {self.seeds} names a seed twice")
        return self


class _Neighbors(Stage):
    """Stages that search for neighbors."""

    clusters: Clusters = 10
    k1: K1 = 10
    k2: K2 = 2
    fr: FractionRatio = 0.8
    neighborhood: Neighborhood = Neighborhood()

    @property
    def number(self) -> int:
        """K, which must be settled.

        Raises:
            ValueError: it is still to be proposed.
        """
        if isinstance(self.clusters, str):
            raise ValueError(f"clusters = {self.clusters} is not settled yet")
        return self.clusters

    @property
    def candidates(self) -> range:
        """The numbers of clusters that are possible: one if it is given."""
        if isinstance(self.clusters, int):
            return range(self.clusters, self.clusters + 1)
        bounds = RANGE.fullmatch(self.clusters)
        return PROPOSED if bounds is None else range(int(bounds[1]), int(bounds[2]) + 1)

    @property
    def conaff(self) -> ConAff:
        """The settings of contextually affinitive neighborhoods."""
        settings = self.neighborhood
        return ConAff(self.k1, self.k2, settings.alpha, settings.layers, settings.symmetrize, settings.normalize)

    @model_validator(mode="after")
    def _k2_fits(self) -> Self:
        if self.k2 > self.k1:
            raise contradiction(f"k2 = {self.k2} is larger than k1 = {self.k1}; lower k2 or raise k1")
        return self


class FinetuneStage(_Seeds, _Neighbors):
    """The keys that `conr finetune` reads."""

    device: Device = "auto"
    precision: Precision = "auto"
    k: Neighbors = 10
    framework: Framework = Framework()
    boundary: Boundary = Boundary()
    views: Views = Views()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    finetune: Finetune = Finetune()

    @model_validator(mode="after")
    def _neighbors_fit_into_the_batch(self) -> Self:
        batch = self.finetune.batch_size
        for name, value in (("k", self.k), ("k1", self.k1)):
            if value > batch:
                raise contradiction(
                    f"{name} = {value} is larger than finetune.batch_size = {batch}; neighbors are searched in a batch"
                )
        return self

    @model_validator(mode="after")
    def _something_prevents_collapse(self) -> Self:
        name, only_group = self.framework.name, self.finetune.instance == 0 and self.neighborhood.neighbors != "none"
        if only_group and _needs_instance_loss(name):
            raise contradiction(
                f"framework.name = {name} needs finetune.instance above 0: without the instance loss its features "
                "can collapse"
            )
        return self


class ExtractStage(Stage):
    """The keys that `conr extract` reads."""

    device: Device = "auto"
    extract: Extract = Extract()


class EvaluateStage(_Seeds, _Neighbors):
    """The keys that `conr evaluate` reads."""

    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _neighbors_fit_into_the_context(self) -> Self:
        if self.k1 > self.evaluate.context:
            raise contradiction(
                f"k1 = {self.k1} is larger than evaluate.context = {self.evaluate.context}, the images among which the "
                "figures search neighbors"
            )
        return self


class Parameters(EvaluateStage, ExtractStage, FinetuneStage, PretrainStage, PrepareStage):
    """All of params.yaml.

    >>> parameters = conr.load_preset("digits")
    >>> parameters.changed({"clusters": 12, "pretrain.epochs": 5}).clusters
    12
    """

    @classmethod
    def checked(cls, content: Mapping[str, Any], origin: str) -> "Parameters":
        """Turn nested keys and values into parameters.

        Raises:
            UserError: naming every key that is wrong, and what would be right; the message starts with the origin.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"{origin}: {explained(error, cls)}") from error

    def changed(self, changes: Mapping[str, Any], origin: str = "changed parameters") -> "Parameters":
        """Parameters with some values replaced, by dotted key, such as "boundary.filter".

        Raises:
            UserError: naming every key that is unknown or has an impossible value; the message starts with the origin.
        """
        content = self.model_dump()
        for key, value in changes.items():
            *groups, name = key.split(".")
            group = content
            for part in groups:
                group = group.setdefault(part, {})
                if not isinstance(group, dict):
                    raise UserError(f"{origin}: {unknown(key, type(self))}")
            group[name] = value
        return self.checked(content, origin)

    @model_validator(mode="after")
    def _heads_have_views(self) -> Self:
        if self.network.is_frozen and self.finetune.epochs and not self.pretrain.cached_views:
            raise contradiction(
                f"finetune.epochs = {self.finetune.epochs} of heads on a frozen backbone need random views: set "
                "pretrain.cached_views, such as 4, or finetune.epochs: 0"
            )
        return self

    @model_validator(mode="after")
    def _frozen_networks_are_not_trained(self) -> Self:
        given = {"views.resolution": self.views.resolution, "finetune.patience": self.finetune.patience}
        for key, value in given.items():
            if value and self.network.is_frozen:
                raise contradiction(
                    f"{key} = {value} is for networks that are trained, and network.backbone = {self.network.backbone} "
                    f"stays as it is; set {key}: {type(value)()}"
                )
        return self

    @model_validator(mode="after")
    def _groups_divide_finetuning(self) -> Self:
        _check_divides(self.network.bn_group, self.training.processes, "finetune", self.finetune.batch_size)
        return self

    @model_validator(mode="after")
    def _schedule_is_long_enough(self) -> Self:
        schedule, total = self.optimizer.schedule_epochs, self.pretrain.epochs + self.finetune.epochs
        if schedule < total:
            raise contradiction(
                f"optimizer.schedule_epochs = {schedule} is shorter than pretrain.epochs + finetune.epochs = {total}; "
                "the learning rate would be 0 before the end"
            )
        return self


STAGES: dict[str, type[Stage]] = {
    "prepare": PrepareStage,
    "pretrain": PretrainStage,
    "finetune": FinetuneStage,
    "extract": ExtractStage,
    "evaluate": EvaluateStage,
}


def _check_divides(group: int, processes: int | str, stage: str, batch_size: int) -> None:
    if group == 1:
        raise contradiction(
            "network.bn_group = 1 leaves nothing to normalize by; use 2 or more, or 0 for the whole batch"
        )
    if group and batch_size % group:
        raise contradiction(f"network.bn_group = {group} does not divide {stage}.batch_size = {batch_size}")
    if isinstance(processes, int) and (problem := cannot_share(processes, stage, batch_size, group)):
        raise contradiction(problem)


def _needs_instance_loss(framework: str) -> bool:
    if framework == Framework().name:
        return False  # known without loading PyTorch, for a quick conr prepare
    from conr.frameworks import framework_class

    return framework_class(framework).needs_instance_loss
