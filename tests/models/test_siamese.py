"""What the online and the target network make of a batch, and how the target follows the online network."""

import copy
from typing import Any

import pytest
import torch
from small_networks import small_spec
from torch import Tensor, nn

from conr.models.heads import mlp
from conr.models.resnet import Encoder
from conr.models.siamese import Network, Outputs, Siamese


def small_model(**changes: Any) -> Siamese:
    return small_spec(**changes).build(seed=0)


def small_network(mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.25,) * 3) -> Network:
    torch.manual_seed(0)
    return Network(Encoder("resnet18", 4, "cifar"), mlp(32, 16, 8), mean, std)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_batches(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = seeded(5)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.rand(size, 3, 8, 8, generator=generator)


def test_network_normalizes_pixels_with_the_statistics_that_it_carries() -> None:
    network = small_network(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    images = torch.rand(3, 3, 8, 8)
    normalized = torch.stack([(images[:, c] - (0.1, 0.2, 0.3)[c]) / (0.5, 0.6, 0.7)[c] for c in range(3)], 1)
    with torch.no_grad():
        expected = network.projector(network.encoder(normalized))
        torch.testing.assert_close(network(images), expected)
    state = network.state_dict()
    assert state["mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert state["std"].flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_head_is_linear_batch_norm_relu_linear() -> None:
    head = mlp(6, 16, 8)
    assert [type(module) for module in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [tuple(head[i].weight.shape) for i in (0, 3)] == [(16, 6), (8, 16)]


@pytest.mark.parametrize("std", [0.01, 0.2])
def test_predictor_weights_start_near_zero(std: float) -> None:
    model = small_model(dimension=64, hidden=256, predictor_init_std=std)
    for layer in (model.predictor[0], model.predictor[3]):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.1 * std


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
    model.update_target(torch.tensor(1 - momentum))
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
    model.update_target(torch.tensor(0.5))
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
    model.update_target(torch.tensor(0.004))
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


def test_noise_is_normal_of_its_std_and_drawn_for_each_view() -> None:
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


# Unit vectors


def random_outputs(dtype: torch.dtype = torch.float32) -> Outputs:
    generator = seeded(1)
    pairs = [tuple((torch.randn(2, 6, 5, generator=generator) * 7).to(dtype).unbind()) for _ in range(3)]
    return Outputs(*pairs)  # type: ignore[arg-type]


KINDS = pytest.mark.parametrize("kind", ["projections", "predictions", "targets"])


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_pair_is_normalized_in_float32(kind: str, dtype: torch.dtype) -> None:
    outputs = random_outputs(dtype)
    for unit, given in zip(getattr(outputs, f"unit_{kind}"), getattr(outputs, kind), strict=True):
        assert unit.dtype == torch.float32
        expected = given.double() / given.double().norm(dim=1, keepdim=True)
        torch.testing.assert_close(unit, expected.float(), rtol=0, atol=1e-6)


@KINDS
def test_each_pair_is_normalized_once(kind: str) -> None:
    outputs = random_outputs()
    pair = getattr(outputs, f"unit_{kind}")
    assert getattr(outputs, f"unit_{kind}") is pair
    getattr(outputs, kind)[0].zero_()  # whatever happens to the original
    assert getattr(outputs, f"unit_{kind}")[0].norm(dim=1).tolist() == pytest.approx([1.0] * 6)


@KINDS
def test_the_length_of_a_feature_does_not_matter(kind: str) -> None:
    outputs = random_outputs()
    lengths = torch.logspace(-3, 3, 6).unsqueeze(1)
    scaled = Outputs(*(tuple(features * lengths for features in pair) for pair in vars(random_outputs()).values()))  # type: ignore[arg-type]
    torch.testing.assert_close(getattr(scaled, f"unit_{kind}"), getattr(outputs, f"unit_{kind}"))


def test_a_feature_of_zeros_has_no_direction_and_stays_zero() -> None:
    zeros = (torch.zeros(2, 3), torch.zeros(2, 3))
    assert not torch.cat(Outputs(zeros, zeros, zeros).unit_predictions).any()


def test_unit_vectors_carry_the_gradient_of_the_online_network_and_none_of_the_target() -> None:
    outputs = small_model()(*two_batches(), seeded())
    assert all(features.requires_grad for features in (*outputs.unit_projections, *outputs.unit_predictions))
    assert not any(features.requires_grad for features in outputs.unit_targets)
