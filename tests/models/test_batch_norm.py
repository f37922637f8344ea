"""Grouped batch norm is plain batch norm of each group in turn, anywhere in a network."""

from collections.abc import Callable

import pytest
import torch
from small_networks import small_spec
from torch import Tensor, nn

from conr import frameworks
from conr.models.batch_norm import GroupedBatchNorm, group_batch_norm, separate_views
from conr.models.heads import mlp
from conr.models.siamese import Siamese


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Batch = Callable[[int], Tensor]


def used(layer: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
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
        (lambda: used(nn.BatchNorm1d(5)), flat),
        (lambda: used(nn.BatchNorm1d(5, affine=False)), flat),
        (lambda: used(nn.BatchNorm2d(5, momentum=0.3)), spatial),
    ],
    ids=["1d", "1d without affine", "2d"],
)
Layer = Callable[[], nn.modules.batchnorm._BatchNorm]


@LAYERS
@pytest.mark.parametrize("group", [4, 5, 6])
def test_grouped_batch_norm_is_plain_batch_norm_of_each_group_in_turn(plain: Layer, batch: Batch, group: int) -> None:
    single, grouped = plain(), GroupedBatchNorm(plain(), group)
    given, expected_given = batch(12).requires_grad_(), batch(12).requires_grad_()
    weights = batch(13)[:12]
    output = grouped(given)
    # One after the other through the same layer: its running statistics take the groups up in turn.
    expected = torch.cat([single(expected_given[first : first + group]) for first in range(0, 12, group)])
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(given.grad, expected_given.grad)
    for name, parameter in grouped.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(single.named_parameters())[name].grad)
    torch.testing.assert_close(grouped.state_dict(), single.state_dict())
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
            for row, value in enumerate(members):
                expected = (value - mean) / (variance + 1e-5) ** 0.5
                assert output[first + row, column].item() == pytest.approx(expected, abs=1e-5)


@LAYERS
@pytest.mark.parametrize("size", [6, 8])
def test_a_batch_no_larger_than_the_group_is_normalized_plainly(plain: Layer, batch: Batch, size: int) -> None:
    single, grouped = plain(), GroupedBatchNorm(plain(), 8)
    assert torch.equal(grouped(batch(size)), single(batch(size)))
    assert all(torch.equal(tensor, single.state_dict()[name]) for name, tensor in grouped.state_dict().items())


@LAYERS
def test_grouped_batch_norm_is_plain_in_evaluation(plain: Layer, batch: Batch) -> None:
    single, grouped = plain().eval(), GroupedBatchNorm(plain(), 4).eval()
    assert torch.equal(grouped(batch(12)), single(batch(12)))
    assert torch.equal(grouped.running_mean, single.running_mean)


@pytest.mark.parametrize("framework", frameworks.names())
def test_grouping_replaces_every_batch_norm_and_keeps_all_names_and_weights(framework: str) -> None:
    plain, grouped = (small_spec(framework=framework, bn_group=group).build(seed=0) for group in (0, 4))
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
    model, (images, others) = small_spec(bn_group=4).build(seed=0), torch.rand(2, 8, 3, 8, 8, generator=seeded(5))
    mixed = torch.cat((images[:4], others[4:]))
    with torch.no_grad():
        torch.testing.assert_close(model.online(mixed)[:4], model.online(images)[:4])
        assert not torch.allclose(model.online(mixed)[4:], model.online(images)[4:], atol=1e-3)


@LAYERS
@pytest.mark.parametrize("group", [0, 4, 5])
def test_several_views_in_a_batch_are_normalized_as_one_after_the_other(plain: Layer, batch: Batch, group: int) -> None:
    single, joined = nn.Sequential(plain()), nn.Sequential(plain())
    for module in (single, joined):
        group_batch_norm(module, group)
    separate_views(joined, 2)
    both, weights = batch(24), batch(25)[:24]
    given, expected_given = both.clone().requires_grad_(), both.clone().requires_grad_()
    output, expected = joined(given), torch.cat([single(view) for view in expected_given.chunk(2)])
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(given.grad, expected_given.grad)
    for ours, theirs in zip(joined.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert list(joined.state_dict()) == list(single.state_dict())
    torch.testing.assert_close(joined.state_dict(), single.state_dict())
    assert torch.equal(joined.eval()(both), single.eval()(both))
    separate_views(joined, 1)
    assert torch.equal(joined.train()(both), single.train()(both))
