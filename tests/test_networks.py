"""The encoder against torchvision's ResNets, grouped batch norm, and how the target network follows the online one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conr import hosts
from conr.networks import Encoder, GroupedBatchNorm, Network, Outputs, Siamese, group_batch_norm, mlp
from conr.training.model import build

DESCRIPTION: dict[str, Any] = {
    "architecture": "resnet18",
    "width": 4,
    "stem": "cifar",
    "hidden": 16,
    "dimension": 8,
    "bn_group": 0,
    "predictor_deviation": 0.01,
    "framework": "byol",
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}


def small_model(**changes: Any) -> Siamese:
    torch.manual_seed(0)
    return build(DESCRIPTION | changes)


def small_network(mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.25,) * 3) -> Network:
    torch.manual_seed(0)
    return Network(Encoder("resnet18", 4, "cifar"), mlp(32, 16, 8), mean, std)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_batches(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = seeded(5)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.rand(size, 3, 8, 8, generator=generator)


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
    network = small_network(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
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


@pytest.mark.parametrize("deviation", [0.01, 0.2])
def test_predictor_weights_start_near_zero(deviation: float) -> None:
    model = small_model(dimension=64, hidden=256, predictor_deviation=deviation)
    for layer in (model.predictor[0], model.predictor[3]):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.1 * deviation


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
    model.online(torch.rand(8, 3, 8, 8))
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
    assert not model.project(images).requires_grad
    outputs = model(images, images, seeded())
    assert not any(features.requires_grad for features in outputs.targets)
    (outputs.predictions[0] - outputs.targets[1]).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.target.parameters())
    assert not any(parameter.requires_grad for parameter in model.target.parameters())
    for part in (model.online, model.predictor):
        assert all(parameter.grad is not None for parameter in part.parameters())


# What a batch becomes


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_outputs_are_those_of_the_three_networks_one_view_at_a_time() -> None:
    model, views = small_model().eval(), two_batches()
    outputs = model(*views, seeded())
    assert same(outputs.projections, (model.online(views[0]), model.online(views[1])))
    assert same(outputs.predictions, tuple(model.predictor(model.online(view)) for view in views))
    assert same(outputs.targets, (model.target(views[0]), model.target(views[1])))


def test_a_target_without_moving_average_is_the_online_projections_without_gradient() -> None:
    torch.manual_seed(0)
    model = Siamese(small_network(), mlp(8, 16, 8), moving_average=False)
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.fill_(torch.nan)  # whatever the target network computes is not asked for
    outputs = model(*two_batches(), seeded())
    assert same(outputs.targets, outputs.projections)
    assert all(features.requires_grad for features in outputs.projections)
    assert not any(features.requires_grad for features in outputs.targets)


def test_a_target_without_moving_average_takes_over_weights_and_statistics() -> None:
    model = Siamese(small_network(), mlp(8, 16, 8), moving_average=False)
    model(*two_batches(), seeded())
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.normal_()
    model.update_target(0.996)
    online, target = model.online.state_dict(), model.target.state_dict()
    assert [name for name in online if not torch.equal(online[name], target[name])] == []
    assert online["encoder.bn1.num_batches_tracked"] == 2
    assert all(online[name].data_ptr() != target[name].data_ptr() for name in online)


def forward(model: Siamese, noise: float, seed: int) -> Outputs:
    """The outputs of a copy, so that running statistics do not carry over."""
    with torch.no_grad():
        outputs: Outputs = copy.deepcopy(model)(*two_batches(), seeded(seed), noise)
    return outputs


def test_noise_changes_the_predictions_and_nothing_else() -> None:
    model = small_model()
    plain, noisy = forward(model, 0.0, seed=0), forward(model, 0.1, seed=0)
    assert same(plain.projections, noisy.projections)
    assert same(plain.targets, noisy.targets)
    assert not torch.equal(plain.predictions[0], noisy.predictions[0])
    assert not torch.equal(plain.predictions[1], noisy.predictions[1])


def test_noise_comes_from_the_generator() -> None:
    model = small_model()
    first, again, other = forward(model, 0.1, seed=1), forward(model, 0.1, seed=1), forward(model, 0.1, seed=2)
    assert same(first.predictions, again.predictions)
    assert not torch.equal(first.predictions[0], other.predictions[0])
    assert same(forward(model, 0.0, seed=1).predictions, forward(model, 0.0, seed=2).predictions)


def test_noise_is_normal_of_its_deviation_and_drawn_for_each_view() -> None:
    model = Siamese(small_network(), nn.Identity())
    outputs = forward(model, 0.1, seed=0)
    generator = seeded(0)
    for predictions, projections in zip(outputs.predictions, outputs.projections, strict=True):
        drawn = torch.randn(projections.shape, generator=generator)
        torch.testing.assert_close(predictions - projections, 0.1 * drawn, rtol=0, atol=1e-6)


# The target's order


def test_a_shuffled_target_keeps_the_places_of_its_outputs() -> None:
    model, views = small_model(bn_group=4).eval(), two_batches()
    assert model.shuffles_target
    expected = model.project(views[0]), model.project(views[1])
    for seed in range(3):
        targets = model(*views, seeded(seed)).targets
        torch.testing.assert_close(targets, expected)
        assert not torch.allclose(targets[0], targets[0].roll(1, 0))


def test_a_shuffled_target_with_statistics_of_the_whole_batch_is_as_one_in_order() -> None:
    shuffled = Siamese(small_network(), mlp(8, 16, 8), shuffles_target=True)
    plain = Siamese(small_network(), mlp(8, 16, 8))
    expected = forward(plain, 0.0, seed=0).targets
    torch.testing.assert_close(forward(shuffled, 0.0, seed=0).targets, expected, rtol=1e-3, atol=1e-4)


def test_with_groups_the_order_decides_the_targets_and_the_online_network_sees_none_of_it() -> None:
    model = small_model(bn_group=4)
    first, again, other = (forward(model, 0.0, seed) for seed in (1, 1, 2))
    assert same(first.targets, again.targets)
    assert not torch.allclose(first.targets[0], other.targets[0], atol=1e-3)
    assert same(first.projections, other.projections)
    assert same(first.predictions, other.predictions)


def test_only_groups_and_a_moving_average_shuffle() -> None:
    assert not small_model(bn_group=0).shuffles_target
    online = small_model(bn_group=4, framework="simsiam")
    assert same(forward(online, 0.0, seed=1).targets, forward(online, 0.0, seed=2).targets)


# Grouped batch norm

Batch = Callable[[int], Tensor]


def lively(layer: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    """With weights and running statistics of its own."""
    with torch.no_grad():
        if layer.affine:
            layer.weight.copy_(torch.linspace(0.5, 1.5, layer.num_features))
            layer.bias.copy_(torch.linspace(-1, 1, layer.num_features))
        layer.running_mean.copy_(torch.linspace(-0.5, 0.5, layer.num_features))
        layer.running_var.copy_(torch.linspace(1, 2, layer.num_features))
    return layer


def flat(size: int) -> Tensor:
    return torch.randn(size, 5, generator=seeded(size)) * 3 + 1


def spatial(size: int) -> Tensor:
    return torch.randn(size, 5, 3, 2, generator=seeded(size)) * 3 + 1


LAYERS = pytest.mark.parametrize(
    ("plain", "batch"),
    [
        (lambda: lively(nn.BatchNorm1d(5)), flat),
        (lambda: lively(nn.BatchNorm1d(5, affine=False)), flat),
        (lambda: lively(nn.BatchNorm2d(5, momentum=0.3)), spatial),
    ],
    ids=["1d", "1d without affine", "2d"],
)
Layer = Callable[[], nn.modules.batchnorm._BatchNorm]


@LAYERS
@pytest.mark.parametrize("group", [4, 5, 6])
def test_grouped_batch_norm_is_plain_batch_norm_of_each_group_in_turn(plain: Layer, batch: Batch, group: int) -> None:
    alone, grouped = plain(), GroupedBatchNorm(plain(), group)
    given, expected_given = batch(12).requires_grad_(), batch(12).requires_grad_()
    weights = batch(13)[:12]
    output = grouped(given)
    # One after the other through the same layer: its running statistics take the groups up in turn.
    expected = torch.cat([alone(expected_given[first : first + group]) for first in range(0, 12, group)])
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(given.grad, expected_given.grad)
    for name, parameter in grouped.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(alone.named_parameters())[name].grad)
    torch.testing.assert_close(grouped.state_dict(), alone.state_dict())
    assert grouped.num_batches_tracked == -(-12 // group)


def test_grouped_batch_norm_against_its_loop() -> None:
    values = flat(12)
    output = GroupedBatchNorm(nn.BatchNorm1d(5), 4)(values)
    rows = values.double()
    for first in range(0, 12, 4):
        for column in range(5):
            members = [rows[i, column].item() for i in range(first, first + 4)]
            mean = sum(members) / 4
            variance = sum((value - mean) ** 2 for value in members) / 4
            for place, value in enumerate(members):
                expected = (value - mean) / (variance + 1e-5) ** 0.5
                assert output[first + place, column].item() == pytest.approx(expected, abs=1e-5)


@LAYERS
@pytest.mark.parametrize("size", [6, 8])
def test_a_batch_no_larger_than_the_group_is_normalised_plainly(plain: Layer, batch: Batch, size: int) -> None:
    alone, grouped = plain(), GroupedBatchNorm(plain(), 8)
    assert torch.equal(grouped(batch(size)), alone(batch(size)))
    assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in grouped.state_dict().items())


@LAYERS
def test_grouped_batch_norm_is_plain_in_evaluation(plain: Layer, batch: Batch) -> None:
    alone, grouped = plain().eval(), GroupedBatchNorm(plain(), 4).eval()
    assert torch.equal(grouped(batch(12)), alone(batch(12)))
    assert torch.equal(grouped.running_mean, alone.running_mean)


@pytest.mark.parametrize("framework", hosts.names())
def test_grouping_replaces_every_batch_norm_and_keeps_all_names_and_weights(framework: str) -> None:
    plain, grouped = small_model(framework=framework), small_model(framework=framework, bn_group=4)
    expected, found = plain.state_dict(), grouped.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [name for name, _ in grouped.named_parameters()] == [name for name, _ in plain.named_parameters()]

    def layers(model: Siamese) -> dict[str, nn.Module]:
        kind = nn.modules.batchnorm._BatchNorm
        return {name: module for name, module in model.named_modules() if isinstance(module, kind)}

    assert layers(grouped).keys() == layers(plain).keys()
    assert {type(layer) for layer in layers(grouped).values()} == {GroupedBatchNorm}
    assert {layer.group for layer in layers(grouped).values()} == {4}
    assert GroupedBatchNorm not in {type(layer) for layer in layers(plain).values()}


def test_a_group_of_zero_leaves_a_module_as_it_is() -> None:
    head = mlp(6, 16, 8)
    before = list(head)
    group_batch_norm(head, 0)
    assert list(head) == before


def test_grouping_shares_the_weights_of_the_layer_it_replaces() -> None:
    head = mlp(6, 16, 8)
    before = head[1]
    group_batch_norm(head, 4)
    assert head[1].weight is before.weight
    assert head[1].bias is before.bias
    assert head[1].running_mean is before.running_mean


def test_a_group_of_a_batch_does_not_see_the_others_through_the_whole_network() -> None:
    model, (images, others) = small_model(bn_group=4), two_batches()
    mixed = torch.cat((images[:4], others[4:]))
    with torch.no_grad():
        torch.testing.assert_close(model.online(mixed)[:4], model.online(images)[:4])
        assert not torch.allclose(model.online(mixed)[4:], model.online(images)[4:], atol=1e-3)
