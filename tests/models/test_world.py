"""Several processes see the batch as one does: rows, gradients, batch-norm statistics, random numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_networks import small_spec
from together import Peers
from torch import Tensor, nn

from conr import frameworks
from conr.frameworks import framework_class
from conr.models.batch_norm import GroupedBatchNorm, synchronize_batch_norm
from conr.models.siamese import Outputs, Siamese
from conr.models.world import World
from conr.parameters.groups import Framework

BATCH, SIZES = 12, [2, 3]
CPU = torch.device("cpu")
GROUP = 2  # samples that share statistics


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As each of several processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_process_alone_has_all_rows() -> None:
    world, rows = World.current(), torch.arange(4)
    assert (world, world.is_main) == (World(0, 1), True)
    assert world.rows(rows).tolist() == world.gather(rows).tolist() == world.broadcast(rows).tolist() == [0, 1, 2, 3]
    assert world.share("value") == "value"


def test_rows_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(ValueError, match="8 rows cannot be shared equally by 3 processes"):
        World(1, 3).rows(torch.arange(8))


def exchanged() -> tuple[Any, ...]:
    world = World.current()
    own = world.rows(torch.arange(float(BATCH))).requires_grad_()
    gathered = world.gather(own)
    (gathered * torch.arange(BATCH)).sum().backward()
    assert own.grad is not None
    broadcast = world.broadcast(torch.tensor([world.rank + 5]))
    words = world.share(["of", "rank", world.rank])
    halves = world.gather(own.detach().bfloat16())
    return gathered.tolist(), own.grad.tolist(), broadcast.item(), words, halves.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_every_process_sees_all_rows_and_what_the_main_one_says(peers: Peers, size: int) -> None:
    results = peers.call(size, exchanged)
    share = BATCH // size
    for rank, (gathered, gradient, broadcast, words, halves) in enumerate(results):
        assert gathered == halves == list(range(BATCH))
        assert gradient == list(range(rank * share, (rank + 1) * share))
        assert (broadcast, words) == (5, ["of", "rank", 0])


def layer(dimensions: int, affine: bool) -> nn.modules.batchnorm._BatchNorm:
    made = (nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d)(5, affine=affine, momentum=0.3)
    if affine:
        nn.init.uniform_(made.weight, 0.5, 1.5, generator=seeded(1))
        nn.init.uniform_(made.bias, -1, 1, generator=seeded(2))
    return made


def samples(dimensions: int) -> Tensor:
    return torch.randn(BATCH, 5, *(() if dimensions == 1 else (3, 2)), generator=seeded(dimensions)) * 3 + 1


def normalized(dimensions: int, affine: bool, group: int) -> dict[str, Tensor]:
    """Outputs and gradients of all rows, gradients of the parameters summed over the processes, and statistics."""
    world, plain = World.current(), layer(dimensions, affine)
    module = nn.Sequential(GroupedBatchNorm(plain, group) if group else plain)
    if world.size > 1:
        synchronize_batch_norm(module, CPU)
    given = world.rows(samples(dimensions)).clone().requires_grad_()
    weights = world.rows(torch.randn(samples(dimensions).shape, generator=seeded(9)))
    for _ in range(2):
        output = module(given)
    (output * weights).square().sum().backward()
    assert given.grad is not None
    gradients = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        gradients[f"gradient of {name}"] = world.gather(parameter.grad.unsqueeze(0)).sum(0)
    rows = {"output": world.gather(output).detach(), "gradient": world.gather(given.grad)}
    return rows | gradients | module.state_dict()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dimensions", "affine"), [(1, True), (1, False), (2, True)])
@pytest.mark.parametrize("group", [0, GROUP])
def test_batch_norm_has_the_statistics_and_gradients_of_one_process(
    peers: Peers, size: int, dimensions: int, affine: bool, group: int
) -> None:
    expected = normalized(dimensions, affine, group)
    for found in peers.call(size, normalized, dimensions, affine, group):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_plain_batch_norm_is_replaced_and_keeps_names_and_weights() -> None:
    plain, changed = (small_spec().build(seed=0) for _ in range(2))
    synchronize_batch_norm(changed, CPU)
    torch.testing.assert_close(changed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert "BatchNorm2d" not in {type(module).__name__ for module in changed.modules()}
    grouped = nn.Sequential(GroupedBatchNorm(nn.BatchNorm1d(3), 2))
    synchronize_batch_norm(grouped, CPU)
    assert type(grouped[0]) is GroupedBatchNorm


def test_synchronized_batch_norm_is_plain_in_evaluation_and_in_one_process() -> None:
    plain, module = layer(2, True), nn.Sequential(layer(2, True))
    synchronize_batch_norm(module, CPU)
    assert torch.equal(module(samples(2)), plain(samples(2)))
    assert torch.equal(module.eval()(samples(2)), plain.eval()(samples(2)))


def loss_of(model: Siamese, outputs: Outputs, name: str) -> Tensor:
    return framework_class(name)(Framework(name=name, queue=20)).instance_loss(outputs)


def gradients(name: str, group: int, noise: float) -> tuple[Tensor, dict[str, Tensor], float]:
    """Of a batch, of all weights; the buffers after it, and the loss. The networks compute in float64."""
    world, model = World.current(), small_spec(framework=name, bn_group=group).build(seed=0).double()
    images = torch.rand(2, BATCH, 3, 8, 8, generator=seeded(3)).double()
    if world.size > 1:
        synchronize_batch_norm(model, CPU)
    outputs = model(world.rows(images[0]), world.rows(images[1]), seeded(4), noise)
    loss = loss_of(model, outputs, name)
    loss.backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    world.add_up(found)
    return torch.cat([gradient.flatten() for gradient in found]), dict(model.named_buffers()), loss.item()


@pytest.mark.parametrize(
    ("name", "group", "noise"), [*((name, 0, 0.3) for name in frameworks.names()), ("byol", GROUP, 0.0)]
)
def test_the_gradient_of_the_whole_batch_is_that_of_one_process(
    peers: Peers, name: str, group: int, noise: float
) -> None:
    gradient, buffers, loss = gradients(name, group, noise)
    for size in SIZES:
        for found, *others in peers.call(size, gradients, name, group, noise):
            assert (found - gradient).norm() <= 1e-9 * gradient.norm()
            torch.testing.assert_close(others, [buffers, loss], rtol=1e-9, atol=1e-9)
