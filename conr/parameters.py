"""Every hyperparameter, declared once: its name, type, range, default and help text.

The key in params.yaml, the command-line flag, the validation and `--help` follow from these declarations. Defaults
are the paper's for CIFAR-10. A stage receives a view (`PretrainStage` …) that holds exactly the keys that dvc.yaml
lists for it, so that it cannot read what DVC does not track. This file itself is no dependency of a stage: its
values are tracked through params.yaml.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

Seed = Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of every random choice")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Field(description="Where to compute; auto takes a GPU if there is one")
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(description="Number format of the forward passes; auto takes bfloat16 where the processor has it"),
]
Clusters = Annotated[int, Field(ge=2, description="K, the number of clusters")]
Neighbours = Annotated[int, Field(ge=1, description="k, contextually affinitive neighbours per sample (Eq. 7)")]
K1 = Annotated[int, Field(ge=1, description="k1, neighbours that define the reciprocal encoding (Eq. 3)")]
K2 = Annotated[int, Field(ge=1, description="k2, neighbours summed over in propagation (Eq. 5); 1 for none")]
FractionRatio = Annotated[
    float,
    Field(gt=0, le=1, description="fr, share of candidates at the first ConNR epoch (Eq. 12); 1 for all"),
]


class Parameters(BaseModel):
    """What all declarations share: unknown keys and wrong types are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Prepare(Parameters):
    """Which images, and how they are packed."""

    source: Literal["digits", "folder"] = Field(
        default="folder", description="digits (1,797 images, ships with scikit-learn) or a folder of images"
    )
    path: str = Field(default="images", description="The folder of images; searched at any depth")
    labels: Literal["none", "dataset", "folder", "parent", "csv"] = Field(
        default="none",
        description="Labels, for scores only: none, dataset (its own), folder (the first level below path), "
        "parent (the folder that holds the file) or csv",
    )
    labels_file: str = Field(
        default="labels.csv", description="With labels csv: a file inside path with columns file and label"
    )
    image_size: int = Field(default=32, ge=4, le=1024, description="Height and width in the store, in pixels")
    fit: Literal["crop", "pad", "stretch"] = Field(
        default="crop", description="How an image that is not square becomes so"
    )
    max_broken: float = Field(
        default=0.1, ge=0, le=1, description="Largest share of unreadable images that is accepted"
    )


class Network(Parameters):
    """Encoder and heads."""

    architecture: Literal["resnet18", "resnet34"] = Field(default="resnet18", description="Encoder (torchvision)")
    width: int = Field(default=64, ge=4, description="Channels of the encoder's first stage; 64 in the paper")
    stem: Literal["cifar", "imagenet"] = Field(
        default="cifar",
        description="cifar: 3×3, stride 1, no max-pool, for small images; imagenet: 7×7, stride 2",
    )
    hidden: int = Field(default=4096, ge=1, description="Hidden units of projector and predictor")
    dimension: int = Field(default=256, ge=2, description="Length of the features that are clustered")


class Views(Parameters):
    """The random views of an image (crop scales are set per stage)."""

    flip: Probability = Field(default=0.5, description="Probability of a horizontal flip")
    rotation: float = Field(default=0.0, ge=0, le=180, description="Largest rotation, degrees either way")
    jitter: Probability = Field(default=0.8, description="Probability that colours change at all")
    brightness: float = Field(default=0.4, ge=0, description="Largest relative change of brightness")
    contrast: float = Field(default=0.4, ge=0, description="Largest relative change of contrast")
    saturation: float = Field(default=0.4, ge=0, description="Largest relative change of saturation")
    hue: float = Field(default=0.1, ge=0, le=0.5, description="Largest shift of hue, share of the colour circle")
    grey: Probability = Field(default=0.2, description="Probability of greyscale")


class Optimiser(Parameters):
    """What both training stages share: one cosine runs through both."""

    base_learning_rate: float = Field(
        default=0.05, gt=0, description="Learning rate at batch size 256; scales linearly with it"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD")
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay, on all parameters")
    warmup_epochs: int = Field(default=50, ge=0, description="Epochs of linear warm-up")
    schedule_epochs: Count = Field(
        default=1000, description="Length of the cosine; at least pretrain.epochs + finetune.epochs"
    )
    target_momentum: float = Field(
        default=0.996,
        ge=0,
        le=1,
        description="Momentum of the target network at the start; grows to 1 on a cosine",
    )


class Pretrain(Parameters):
    """Instance concordance (BYOL)."""

    epochs: Count = Field(default=800, description="Epochs of instance concordance (t0)")
    batch_size: int = Field(default=256, ge=2, description="Images per step; must not exceed the number of images")
    crop_scale: Share = Field(default=0.08, description="Smallest share of the image that a crop covers")
    predictor_rate: float = Field(default=10.0, gt=0, description="Learning rate of the predictor, times the rate")


class Finetune(Parameters):
    """Group concordance (ConNR)."""

    epochs: Count = Field(default=200, description="Epochs of group concordance (T − t0)")
    batch_size: int = Field(default=256, ge=2, description="Images per step; k and k1 must not exceed it")
    crop_scale: Share = Field(default=0.45, description="Smallest share of the image that a crop covers")
    rate: float = Field(default=0.1, gt=0, description="Learning rate, times that of the cosine")
    alpha: float = Field(default=2.0, ge=0, description="Exponent of the edge weights (Eq. 6)")
    layers: int = Field(default=2, ge=0, description="Layers of propagation, L (Eq. 6)")
    symmetrise: bool = Field(default=True, description="Add the transpose before each layer, as released")
    normalise: bool = Field(default=True, description="l2-normalise rows after each layer, as released")
    relaxation: Share = Field(
        default=1.0, description="Share of the epochs after which all samples are candidates; 1 in the paper"
    )
    divisor: Literal["candidates", "batch"] = Field(
        default="candidates",
        description="Mean of the loss over candidates (paper) or the batch (released code)",
    )


class Evaluate(Parameters):
    """Final k-means and scores."""

    restarts: Count = Field(default=40, description="Restarts of k-means; the lowest inertia is kept")
    iterations: Count = Field(default=100, description="Largest number of iterations of each restart")
    gallery: int = Field(default=24, ge=1, description="Images shown per cluster in the report")


class PrepareStage(Parameters):
    """The keys that `conr prepare` reads."""

    prepare: Prepare = Prepare()


class PretrainStage(Parameters):
    """The keys that `conr pretrain` reads."""

    seed: Seed = 0
    device: Device = "auto"
    precision: Precision = "auto"
    network: Network = Network()
    views: Views = Views()
    optimiser: Optimiser = Optimiser()
    pretrain: Pretrain = Pretrain()


class FinetuneStage(Parameters):
    """The keys that `conr finetune` reads."""

    seed: Seed = 0
    device: Device = "auto"
    precision: Precision = "auto"
    clusters: Clusters = 10
    k: Neighbours = 10
    k1: K1 = 10
    k2: K2 = 2
    fr: FractionRatio = 0.8
    views: Views = Views()
    optimiser: Optimiser = Optimiser()
    finetune: Finetune = Finetune()


class ExtractStage(Parameters):
    """The keys that `conr extract` reads."""

    device: Device = "auto"


class EvaluateStage(Parameters):
    """The keys that `conr evaluate` reads."""

    seed: Seed = 0
    clusters: Clusters = 10
    evaluate: Evaluate = Evaluate()


class ParamsFile(EvaluateStage, ExtractStage, FinetuneStage, PretrainStage, PrepareStage):
    """All of params.yaml."""
