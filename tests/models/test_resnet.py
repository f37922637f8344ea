"""The encoder against torchvision's ResNets, and its two stems."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conr.models.resnet import Encoder


@pytest.fixture(scope="module", params=["resnet18", "resnet34", "resnet50"])
def pair(request: pytest.FixtureRequest) -> tuple[Encoder, nn.Module]:
    """Our encoder and torchvision's network without its classifier, with its weights and statistics of its own."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(request.param)
    theirs.fc = nn.Identity()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            buffer.normal_()
    ours = Encoder(request.param, 64, "imagenet")
    return ours, theirs


def test_names_and_shapes_are_those_of_torchvision(pair: tuple[Encoder, nn.Module]) -> None:
    ours, theirs = ({name: tensor.shape for name, tensor in network.state_dict().items()} for network in pair)
    assert ours == theirs


def test_convolutions_start_as_wide_as_those_of_torchvision(pair: tuple[Encoder, nn.Module]) -> None:
    ours, theirs = pair
    expected = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        if weight.ndim == 4:
            assert weight.std().item() == pytest.approx(expected[name].std().item(), rel=0.05)


def test_outputs_are_those_of_torchvision_with_the_same_weights(pair: tuple[Encoder, nn.Module]) -> None:
    ours, theirs = pair
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def feature_map(encoder: Encoder, images: Tensor) -> tuple[int, ...]:
    """Shape of what enters the pooling."""
    shapes: list[tuple[int, ...]] = []
    hook = encoder.avgpool.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    encoder(images)
    hook.remove()
    return shapes[0]


def test_cifar_stem_keeps_small_images_large() -> None:
    encoder = Encoder("resnet18", 4, "cifar")
    assert not any(isinstance(module, nn.MaxPool2d) for module in encoder.modules())
    assert encoder.conv1.weight.shape == (4, 3, 3, 3)
    assert encoder.conv1.stride == (1, 1)
    assert feature_map(encoder, torch.rand(2, 3, 32, 32)) == (2, 32, 4, 4)
    assert feature_map(encoder, torch.rand(2, 3, 8, 8)) == (2, 32, 1, 1)


def test_imagenet_stem_shrinks_images_at_once() -> None:
    encoder = Encoder("resnet18", 4, "imagenet")
    assert feature_map(encoder, torch.rand(2, 3, 64, 64)) == (2, 32, 2, 2)


@pytest.mark.parametrize(("architecture", "features"), [("resnet34", 40), ("resnet50", 160)])
def test_features_are_8_or_32_times_as_wide_as_the_first_stage(architecture: str, features: int) -> None:
    encoder = Encoder(architecture, 5, "cifar")
    assert encoder.features == features
    assert encoder(torch.rand(2, 3, 8, 8)).shape == (2, features)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_maps_of_one_pixel_are_right_in_every_number_format(architecture: str, dtype: torch.dtype) -> None:
    """oneDNN leaves what such a map does not reach of a kernel unset, where the stride is 2."""
    torch.manual_seed(0)
    encoder = Encoder(architecture, 4, "cifar")  # 4 pixels → 4 → 2 → 1 → 1
    images = torch.rand(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert feature_map(encoder, images)[2:] == (1, 1)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        features = encoder(images)
    features.float().square().sum().backward()
    reached = torch.zeros(3, 3, dtype=torch.bool)
    reached[1, 1] = True
    for name, weight in encoder.layer4.named_parameters():
        if weight.shape[2:] == (3, 3):
            assert weight.grad is not None
            assert torch.equal((weight.grad != 0).any(dim=(0, 1)), reached), name


@pytest.mark.parametrize(
    ("architecture", "stem", "message"),
    [
        ("resnet101", "cifar", "architecture must be one of resnet18, resnet34, resnet50, not 'resnet101'"),
        ("resnet18", "mnist", "stem must be 'cifar' or 'imagenet', not 'mnist'"),
    ],
)
def test_unknown_names_are_errors(architecture: str, stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(architecture, 4, stem)
