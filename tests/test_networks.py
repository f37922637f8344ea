"""The encoder against torchvision's ResNets, and how the target network follows the online one."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conr.networks import Encoder, Network, Siamese, mlp, network_from

DESCRIPTION = {"architecture": "resnet18", "width": 4, "stem": "cifar", "hidden": 16, "dimension": 8}


def small_model(seed: int = 0) -> Siamese:
    torch.manual_seed(seed)
    return Siamese(network_from(DESCRIPTION), hidden=16, dimension=8)


@pytest.fixture(scope="module", params=["resnet18", "resnet34"])
def pair(request: pytest.FixtureRequest) -> tuple[Encoder, nn.Module]:
    """Our encoder and torchvision's network without its classifier, with its weights and lively statistics."""
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


def test_encoder_features_are_eight_times_as_wide_as_its_first_stage() -> None:
    encoder = Encoder("resnet34", 5, "cifar")
    assert encoder.features == 40
    assert encoder(torch.rand(2, 3, 8, 8)).shape == (2, 40)


@pytest.mark.parametrize(
    ("architecture", "stem", "message"),
    [
        ("resnet50", "cifar", "architecture must be one of resnet18, resnet34, not 'resnet50'"),
        ("resnet18", "mnist", "stem must be 'cifar' or 'imagenet', not 'mnist'"),
    ],
)
def test_unknown_names_are_errors(architecture: str, stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(architecture, 4, stem)


def test_network_normalises_pixels_with_the_statistics_that_it_carries() -> None:
    torch.manual_seed(0)
    network = Network("resnet18", 4, "cifar", 16, 8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    images = torch.rand(3, 3, 8, 8)
    normalised = torch.stack([(images[:, c] - (0.1, 0.2, 0.3)[c]) / (0.5, 0.6, 0.7)[c] for c in range(3)], 1)
    with torch.no_grad():
        expected = network.projector(network.encoder(normalised))
        torch.testing.assert_close(network(images), expected)
    state = network.state_dict()
    assert state["mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert state["std"].flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_head_is_linear_batch_norm_relu_linear() -> None:
    head = mlp(6, 16, 8)
    assert [type(module) for module in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [tuple(head[i].weight.shape) for i in (0, 3)] == [(16, 6), (8, 16)]


def test_predictor_weights_start_near_zero() -> None:
    torch.manual_seed(0)
    model = Siamese(network_from(DESCRIPTION | {"dimension": 64}), hidden=256, dimension=64)
    for layer in (model.predictor[0], model.predictor[3]):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.001


def test_target_starts_as_a_copy_of_its_own() -> None:
    model = small_model()
    online, target = model.online.state_dict(), model.target.state_dict()
    assert online.keys() == target.keys()
    for name, tensor in online.items():
        assert torch.equal(tensor, target[name])
        assert tensor.data_ptr() != target[name].data_ptr()


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_target_moves_to_the_weighted_mean_of_itself_and_the_online_network(momentum: float) -> None:
    model = small_model()
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.normal_()
    before = {name: parameter.clone() for name, parameter in model.target.named_parameters()}
    online = {name: parameter.clone() for name, parameter in model.online.named_parameters()}
    model.update_target(momentum)
    for name, parameter in model.target.named_parameters():
        expected = momentum * before[name].double() + (1 - momentum) * online[name].double()
        torch.testing.assert_close(parameter.double(), expected, rtol=0, atol=1e-6)
        if momentum in (0.0, 1.0):
            assert torch.equal(parameter, (online if momentum == 0 else before)[name])
        assert torch.equal(dict(model.online.named_parameters())[name], online[name])


def test_target_update_leaves_batch_norm_statistics_alone() -> None:
    model = small_model()
    model.predict(torch.rand(8, 3, 8, 8))
    before = {name: buffer.clone() for name, buffer in model.target.named_buffers()}
    assert any(
        not torch.equal(buffer, before[name])
        for name, buffer in model.online.named_buffers()
        if name.endswith("running_mean")
    )
    model.update_target(0.5)
    for name, buffer in model.target.named_buffers():
        assert torch.equal(buffer, before[name])


def test_target_takes_no_gradient() -> None:
    model = small_model()
    images = torch.rand(8, 3, 8, 8)
    features = model.project(images)
    assert not features.requires_grad
    (model.predict(images) - features).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.target.parameters())
    assert not any(parameter.requires_grad for parameter in model.target.parameters())
    for part in (model.online, model.predictor):
        assert all(parameter.grad is not None for parameter in part.parameters())
