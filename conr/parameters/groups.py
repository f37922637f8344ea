"""Every hyperparameter of a group of params.yaml, declared once: its name, type, range, default and help text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from conr import frameworks

if TYPE_CHECKING:
    FrameworkName = str
else:  # one file in conr/frameworks is one framework
    FrameworkName = Literal[tuple(frameworks.names())]

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]  # so that a slip of the finger does not run for ever

SCRATCH, WEIGHTS = "scratch", "weights:"  # values of network.backbone


class Group(BaseModel):
    """What all declarations share: unknown keys and wrong types are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


def contradiction(message: str) -> PydanticCustomError:
    """The error of a validator that finds parameters that contradict each other."""
    return PydanticCustomError("contradiction", "{message}", {"message": message})


class Prepare(Group):
    """Which images, and how they are packed."""

    source: Literal[
        "digits", "folder", "cifar10", "cifar20", "stl10", "imagenet10", "imagenet-dogs", "tiny-imagenet", "webdataset"
    ] = Field(
        default="folder",
        description="digits (1,797 images, ships with scikit-learn), a folder of images, a data set of the paper, or "
        "webdataset (a folder of tar files)",
    )
    path: str = Field(
        default="images", description="With source folder or webdataset: the folder; searched at any depth"
    )
    exclude: list[str] = Field(
        default=[],
        description="With prepare.path: files and folders to leave out, as names or patterns such as '*_mask.png'; "
        "with a slash, paths below path",
    )
    frames: Literal["first", "all", "max"] = Field(
        default="first",
        description="With source folder: what counts of a file with several pages or frames: the first, all as images "
        "of their own, or their maximum (for stacks of a microscope)",
    )
    root: str = Field(
        default="data", description="With a data set of the paper: the folder of its files, not tracked by DVC"
    )
    download: bool = Field(default=False, description="Download cifar10, cifar20 or stl10 if missing")
    protocol: Literal["all", "held-out"] = Field(
        default="all",
        description="all: train and score on all images (the paper); held-out: train on the training split only, "
        "score on the test split",
    )
    imbalance: float = Field(
        default=1.0,
        ge=1,
        description="Above 1: a long-tailed subset, chosen by the labels, whose largest class has this many times the "
        "images of its smallest",
    )
    labels: Literal["none", "dataset", "folder", "parent", "csv"] = Field(
        default="none",
        description="Labels, for scores only: none, dataset (its own), folder (the first level below path), "
        "parent (the folder that holds the file) or csv",
    )
    labels_file: str = Field(
        default="labels.csv", description="With labels csv: a file in path, columns file and label"
    )
    image_size: int = Field(default=32, ge=4, le=1024, description="Height and width in the store, in pixels")
    fit: Literal["crop", "pad", "stretch"] = Field(default="crop", description="How an image is made square")
    shard_size: int = Field(
        default=0,
        ge=0,
        description="Above 0: the store has files of at most this many megabytes, with at least one image each; 0: one "
        "file",
    )
    max_broken: float = Field(
        default=0.1, ge=0, le=1, description="Largest share of unreadable images that is accepted"
    )

    @field_validator("path", mode="before")
    @classmethod
    def _is_text(cls, path: object) -> object:
        if isinstance(path, int | float) and not isinstance(path, bool):
            raise PydanticCustomError("number", "'{path}', in quotes: without them it is a number", {"path": path})
        if path is None or path == "":
            raise PydanticCustomError("empty", "the name of a folder, in quotes if it begins with #")
        return path

    @field_validator("path")
    @classmethod
    def _written_out(cls, path: str) -> str:
        """`~` would work in `conr prepare` and not in `dvc repro`, which looks for a folder of that name."""
        if path.startswith("~"):
            try:
                instead = str(Path(path).expanduser())
            except RuntimeError:  # no such user
                instead = f"./{path}"
            raise PydanticCustomError("tilde", "{instead}: DVC does not know ~", {"instead": instead})
        return path


class Network(Group):
    """Encoder and heads."""

    backbone: str = Field(
        default="scratch",
        min_length=1,
        description="Where the encoder comes from. scratch: trained from random weights (the paper); "
        "efficientnet-lite0 or -lite2: frozen, has seen ImageNet (the extra pretrained of conr); onnx:PATH: any "
        "image network, frozen; weights:PATH: torchvision's ResNet-18, 34 or 50 to start from, with its architecture, "
        "width and stem",
    )
    encoder: Literal["trained", "frozen"] = Field(
        default="trained",
        description="With weights:PATH: whether training changes the encoder, or it stays as it is",
    )
    architecture: Literal["resnet18", "resnet34"] = Field(default="resnet18", description="Encoder (torchvision)")
    width: int = Field(default=64, ge=4, le=8192, description="Channels of the encoder's first stage; 64 in the paper")
    stem: Literal["cifar", "imagenet"] = Field(
        default="cifar", description="cifar: 3×3, stride 1, no max-pool, for small images; imagenet: 7×7, stride 2"
    )
    hidden: int = Field(default=4096, ge=1, le=1_000_000, description="Hidden units of projector and predictor")
    dimension: int = Field(
        default=256,
        ge=2,
        le=1_000_000,
        description="Length of the features that are clustered; a frozen backbone's are reduced to it by PCA",
    )
    bn_group: int = Field(
        default=0,
        ge=0,
        description="Samples that share batch-norm statistics, as on one of several GPUs; 0 for the whole batch. The "
        "target network then sees each batch in another order",
    )
    predictor_init_std: float = Field(default=0.01, gt=0, description="Std of the initial weights of BYOL's predictor")

    @property
    def layers(self) -> dict[str, Any]:
        """What a network that is trained is built from, as `conr.training.weights.ModelSpec` takes it."""
        return self.model_dump(exclude={"backbone", "encoder"})

    @property
    def is_frozen(self) -> bool:
        """Whether no training changes the encoder."""
        return self.backbone != SCRATCH and (self.encoder == "frozen" or not self.backbone.startswith(WEIGHTS))

    @model_validator(mode="after")
    def _only_weights_can_be_frozen(self) -> Self:
        if self.encoder == "frozen" and not self.is_frozen:
            raise contradiction("network.encoder = frozen needs weights to keep: set network.backbone, or trained")
        return self


class Framework(Group):
    """The self-supervised framework that ConNR refines."""

    name: FrameworkName = Field(default="byol", description="Whose instance loss and heads to use; byol in the paper")
    temperature: float = Field(default=0.2, gt=0, description="moco: temperature of the contrastive loss")
    queue: int = Field(
        default=4096, ge=1, le=10_000_000, description="moco: keys of past batches that serve as negatives"
    )
    redundancy: float = Field(default=0.005, ge=0, description="barlow-twins: weight of the off-diagonal correlation")


class Neighborhood(Group):
    """Which neighbors ConNR pulls together (Eq. 2-7)."""

    neighbors: Literal["none", "local", "conaff"] = Field(
        default="conaff",
        description="conaff: contextually affinitive (the paper); local: Euclidean (Eq. 2); none: more epochs "
        "of the instance loss",
    )
    alpha: float = Field(default=2.0, ge=0, description="Exponent of the edge weights (Eq. 6)")
    layers: int = Field(default=2, ge=0, le=100, description="Layers of propagation, L (Eq. 6)")
    symmetrize: bool = Field(default=True, description="Add the transpose before each layer, as released")
    normalize: bool = Field(default=True, description="l2-normalize rows after each layer, as released")


class Boundary(Group):
    """Which samples may search for neighbors (Eq. 9-13)."""

    filter: Literal["none", "fixed", "relaxed"] = Field(
        default="relaxed",
        description="relaxed: a share fr at first, growing to all (the paper); fixed: always the share fr; none: all",
    )
    relaxation: Share = Field(
        default=1.0, description="Share of the epochs after which all are candidates; 1 in the paper"
    )


class Optimizer(Group):
    """What both training stages share: one cosine runs through both."""

    base_learning_rate: float = Field(
        default=0.05, gt=0, description="Learning rate at batch size 256; scales linearly with it"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD")
    weight_decay: float = Field(default=5e-4, ge=0, description="Weight decay, on all parameters")
    warmup_epochs: int = Field(default=50, ge=0, le=1_000_000, description="Epochs of linear warm-up")
    schedule_epochs: Count = Field(default=1000, description="Length of the cosine; at least both stages' epochs")
    target_momentum: float = Field(default=0.996, ge=0, le=1, description="Momentum of the target network at the start")
    target_schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="cosine: the target's momentum grows to 1 (BYOL); constant: it stays"
    )

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup_epochs >= self.schedule_epochs:
            raise contradiction(
                f"optimizer.warmup_epochs = {self.warmup_epochs} must be smaller than optimizer.schedule_epochs = "
                f"{self.schedule_epochs}"
            )
        return self


class Pretrain(Group):
    """Instance concordance (BYOL)."""

    epochs: Count = Field(default=800, description="Epochs of instance concordance (t0)")
    cached_views: int = Field(
        default=0,
        ge=0,
        le=100,
        description="With a frozen backbone: random views of each image whose features are kept, for ConNR on them",
    )
    batch_size: int = Field(
        default=256, ge=2, le=1_000_000, description="Images per step; at most all images to train on"
    )
    crop_scale: Share = Field(default=0.08, description="Smallest share of the image that a crop covers")
    predictor_lr_scale: float = Field(default=10.0, gt=0, description="Predictor's learning rate over the schedule's")
    scattering: float = Field(
        default=0.0, ge=0, description="Weight of prototype scattering after the warm-up; 0 for none, ProPos 0.1"
    )
    scattering_temperature: float = Field(default=0.5, gt=0, description="Temperature of prototype scattering")
    prototypes: int = Field(
        default=10,
        ge=2,
        le=1_000_000,
        description="Prototypes to scatter; independent of clusters: another K does not repeat pretraining",
    )
    noise_std: float = Field(
        default=0.0,
        ge=0,
        description="Standard deviation of the noise on online features before the predictor, after the warm-up "
        "(ProPos: 0.001); 0 for none",
    )


class Finetune(Group):
    """Group concordance (ConNR)."""

    epochs: int = Field(
        default=200,
        ge=0,
        le=1_000_000,
        description="Epochs of group concordance (T − t0); 0 for none: the features stay as they are",
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="End early when clusters stand still: after so many epochs in a row in each of which fewer than "
        "0.5 % of the images change theirs; 0: never",
    )
    batch_size: int = Field(default=256, ge=2, le=1_000_000, description="Images per step; k and k1 must not exceed it")
    crop_scale: Share = Field(default=0.45, description="Smallest share of the image that a crop covers")
    lr_scale: float = Field(default=0.1, gt=0, description="Learning rate, as a multiple of the schedule's")
    predictor_lr_scale: float = Field(default=0.1, gt=0, description="Learning rate of the predictor, likewise")
    instance: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the instance loss beside group concordance; 0 in the paper, above 0 where "
        "negatives or decorrelation prevent collapse (moco, barlow-twins)",
    )
    divisor: Literal["candidates", "batch"] = Field(
        default="candidates", description="Mean of the loss over candidates (paper) or the batch (released code)"
    )
    scattering: float = Field(
        default=0.0, ge=0, description="Weight of prototype scattering (ProPos) with the clusters; 0 for none"
    )
    scattering_temperature: float = Field(default=0.5, gt=0, description="Temperature of prototype scattering")
    boost: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the loss on high-confidence samples with an adaptive neighbor number (DCBoost); 0 for "
        "none",
    )
    boost_neighbors: int = Field(
        default=50, ge=1, le=1_000_000, description="Largest neighbor number that DCBoost considers"
    )


class Extract(Group):
    """The encoder in ONNX, and the embeddings of all images."""

    precision: Literal["float32", "int8"] = Field(
        default="float32",
        description="Number format of the encoder; int8, calibrated on training images, is for CPUs: several times "
        "faster where they have VNNI, refused if its embeddings differ",
    )


class Evaluate(Group):
    """Final clusters and scores."""

    method: Literal["kmeans", "graph", "auto"] = Field(
        default="kmeans",
        description="Whose clusters are the result: k-means (the paper), or spectral clustering of the graph of ConAff "
        "neighbors of all images; auto: the graph's, unless those of k-means are much more compact. Both are computed "
        "and scored",
    )
    graph_k1: int = Field(
        default=0, ge=0, le=1_000, description="Of the graph: k1; 0: by a rule from the numbers of images and clusters"
    )
    graph_k2: int = Field(
        default=0,
        ge=0,
        le=1_000,
        description="Of the graph: k2, at most k1; 0: of several by a rule, that with the most compact clusters",
    )
    n_init: Count = Field(default=40, description="Initializations of k-means; the lowest inertia is kept")
    max_iter: Count = Field(default=100, description="Largest number of iterations of each")
    gallery: int = Field(default=24, ge=1, le=10_000, description="Images shown per cluster in the report")
    context: int = Field(
        default=256, ge=2, le=1_000_000, description="Images among which the figures search neighbors, like a batch"
    )
