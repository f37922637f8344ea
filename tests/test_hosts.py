"""What every host promises, found from its file alone; and the losses of each against plain loops."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conr import hosts
from conr.hosts import Host, host_class
from conr.hosts.barlow_twins import redundancy_reduction
from conr.hosts.moco import MoCo, contrastive_loss
from conr.networks import Outputs, Pair, Siamese
from conr.parameters import Host as Settings
from conr.training.model import build

SIZE, DIMENSION = 16, 8
DESCRIPTION: dict[str, Any] = {
    "architecture": "resnet18",
    "width": 4,
    "stem": "cifar",
    "hidden": 16,
    "dimension": DIMENSION,
    "bn_group": 0,
    "predictor_deviation": 0.01,
    "framework": "byol",
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}

every_host = pytest.mark.parametrize("framework", hosts.names())


def new_model(framework: str, seed: int = 0, **changes: Any) -> Siamese:
    torch.manual_seed(seed)
    return build(DESCRIPTION | {"framework": framework} | changes)


def new_host(framework: str, **settings: Any) -> Host:
    return host_class(framework)(Settings(framework=framework, **({"queue": 32} | settings)))


def views() -> tuple[Tensor, Tensor]:
    """Two views of a batch: an image and a little noise."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(SIZE, 3, 8, 8, generator=generator)
    first, second = (images + 0.05 * torch.randn(images.shape, generator=generator) for _ in range(2))
    return first, second


def outputs_of(model: Siamese) -> Outputs:
    outputs: Outputs = model(*views(), torch.Generator().manual_seed(0))
    return outputs


def random_pair(seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, SIZE, DIMENSION, generator=generator)
    return first * 3, second


# Every host


def test_hosts_are_the_files_of_their_folder() -> None:
    files = {path.stem for path in Path(hosts.__file__).parent.glob("*.py")} - {"__init__"}
    assert hosts.names() == sorted(stem.replace("_", "-") for stem in files)
    assert {"byol", "simsiam", "moco", "barlow-twins"} <= set(hosts.names())
    assert not any("_" in name for name in hosts.names())


def test_a_new_file_is_a_new_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_byol.py").write_text("from conr.hosts.byol import Byol\n\nHOST = Byol\n")
    monkeypatch.setattr(hosts, "__path__", [*hosts.__path__, str(tmp_path)])
    before = set(hosts.names()) - {"plain-byol"}
    assert before | {"plain-byol"} == set(hosts.names())
    assert host_class("plain-byol") is host_class("byol")


@every_host
def test_a_host_is_found_by_its_name_and_accepted_as_a_parameter(framework: str) -> None:
    found = host_class(framework)
    assert issubclass(found, Host)
    assert found.__module__ == f"conr.hosts.{framework.replace('-', '_')}"
    assert Settings(framework=framework).framework == framework


@every_host
@pytest.mark.parametrize("dimension", [2, 8])
def test_heads_have_the_shapes_promised(framework: str, dimension: int) -> None:
    host = host_class(framework)
    projector, predictor = host.projector(12, 20, dimension), host.predictor(dimension, 20, 0.01)
    features = projector(torch.rand(5, 12))
    assert features.shape == (5, dimension)
    assert predictor(features).shape == (5, dimension)


@every_host
def test_the_loss_is_a_finite_scalar_with_a_gradient_for_every_online_parameter_and_none_for_the_target(
    framework: str,
) -> None:
    model, host = new_model(framework), new_host(framework)
    outputs = outputs_of(model)
    loss = host.instance_loss(outputs.predictions, outputs.targets)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    loss.backward()
    for part in (model.online, model.predictor):
        for parameter in part.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.any()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.target.parameters())


@every_host
def test_the_loss_of_a_tiny_problem_falls(framework: str) -> None:
    model, host = new_model(framework), new_host(framework)
    trained = [*model.online.parameters(), *model.predictor.parameters()]
    optimiser = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        outputs = outputs_of(model)
        loss = host.instance_loss(outputs.predictions, outputs.targets)  # never remembered: the problem stays the same
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.update_target(0.9)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@every_host
def test_the_loss_treats_both_views_alike(framework: str) -> None:
    host, predictions, targets = new_host(framework), random_pair(0), random_pair(1)
    loss = host.instance_loss(predictions, targets)
    torch.testing.assert_close(host.instance_loss(predictions[::-1], targets[::-1]), loss)


@every_host
def test_a_loss_changes_no_memory_before_the_batch_is_remembered(framework: str) -> None:
    host, predictions, targets = new_host(framework), random_pair(0), random_pair(1)
    first = host.instance_loss(predictions, targets)
    assert torch.equal(host.instance_loss(predictions, targets), first)


@every_host
def test_a_host_that_takes_over_the_state_of_another_goes_on_like_it(framework: str) -> None:
    host = new_host(framework)
    for seed in range(3):
        host.instance_loss(random_pair(seed), random_pair(seed + 10))
        host.remember(random_pair(seed + 10))
    other = new_host(framework)
    other.load_state(copy.deepcopy(host.state()))
    assert other.state().keys() == host.state().keys()
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in host.state().items())
    predictions, targets = random_pair(5), random_pair(6)
    assert torch.equal(other.instance_loss(predictions, targets), host.instance_loss(predictions, targets))


@every_host
def test_the_target_follows_as_the_host_says(framework: str) -> None:
    model = new_model(framework)
    assert model.moving_average is host_class(framework).moving_average
    outputs_of(model)
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.add_(1.0)
    model.update_target(0.5)
    online, target = model.online.state_dict(), model.target.state_dict()
    differing = {name for name in online if not torch.equal(online[name], target[name])}
    if model.moving_average:
        assert differing >= {name for name, _ in model.online.named_parameters()}
    else:  # weights, running statistics and counts
        assert differing == set()
        assert online["encoder.bn1.num_batches_tracked"] == 2


def test_which_hosts_have_a_moving_average_and_which_collapse_without_their_loss() -> None:
    found = {name: (host_class(name).moving_average, host_class(name).needs_instance_loss) for name in hosts.names()}
    known = {"byol": (True, False), "simsiam": (False, False), "moco": (True, True), "barlow-twins": (False, True)}
    assert {name: found[name] for name in known} == known


# Building


@every_host
def test_the_same_seed_builds_the_same_weights_and_another_others(framework: str) -> None:
    first, again, other = (new_model(framework, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["online.encoder.conv1.weight"], other["online.encoder.conv1.weight"])


@every_host
def test_hosts_share_the_encoder_of_a_seed(framework: str) -> None:
    ours, byol = new_model(framework).online.encoder.state_dict(), new_model("byol").online.encoder.state_dict()
    assert all(torch.equal(tensor, byol[name]) for name, tensor in ours.items())


@every_host
def test_the_heads_built_are_those_of_the_host(framework: str) -> None:
    model, host = new_model(framework), host_class(framework)

    def layers(module: nn.Module) -> list[tuple[type[nn.Module], list[torch.Size]]]:
        return [(type(part), [weight.shape for weight in part.parameters()]) for part in module.modules()]

    assert layers(model.online.projector) == layers(host.projector(32, 16, DIMENSION))
    assert layers(model.predictor) == layers(host.predictor(DIMENSION, 16, 0.01))


def test_an_unknown_framework_is_named() -> None:
    with pytest.raises((ImportError, ValueError), match="dino"):
        new_model("dino")
    with pytest.raises(KeyError, match="framework"):
        build({name: value for name, value in DESCRIPTION.items() if name != "framework"})


# The losses


def unit(vector: list[float]) -> list[float]:
    return [x / math.hypot(*vector) for x in vector]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_contrast(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> float:
    wrong = negatives.double().tolist()
    losses = []
    for query, key in zip(queries.double().tolist(), keys.double().tolist(), strict=True):
        own = math.exp(dot(unit(query), unit(key)) / temperature)
        others = sum(math.exp(dot(unit(query), negative) / temperature) for negative in wrong)
        losses.append(-math.log(own / (own + others)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_contrastive_loss_equals_its_loop(seed: int, temperature: float) -> None:
    queries, keys = random_pair(seed)
    negatives = nn.functional.normalize(random_pair(seed + 10)[0], dim=1)
    loss = contrastive_loss(queries, keys, negatives, temperature)
    assert loss.item() == pytest.approx(slow_contrast(queries, keys, negatives, temperature), abs=1e-5)


def test_moco_adds_both_directions_at_its_temperature_and_against_its_queue() -> None:
    host, predictions, targets = new_host("moco", temperature=0.3), random_pair(0), random_pair(1)
    host.remember(random_pair(2))
    queue = host.state()["queue"]
    expected = slow_contrast(predictions[0], targets[1], queue, 0.3)
    expected += slow_contrast(predictions[1], targets[0], queue, 0.3)
    assert host.instance_loss(predictions, targets).item() == pytest.approx(expected, abs=1e-5)


def slow_redundancy(first: Tensor, second: Tensor, weight: float) -> float:
    columns = []
    for features in (first, second):
        standardised = []
        for column in features.double().T.tolist():
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
            standardised.append([(value - mean) / math.sqrt(variance + 1e-5) for value in column])
        columns.append(standardised)
    total = 0.0
    for i, ours in enumerate(columns[0]):
        for j, theirs in enumerate(columns[1]):
            correlation = dot(ours, theirs) / len(ours)
            total += (1 - correlation) ** 2 if i == j else weight * correlation**2
    return total / len(columns[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
def test_redundancy_reduction_equals_its_loop(seed: int, weight: float) -> None:
    first, second = random_pair(seed)
    loss = redundancy_reduction(first + 0.5 * second, second, weight)
    assert loss.item() == pytest.approx(slow_redundancy(first + 0.5 * second, second, weight), abs=1e-5)


def test_redundancy_is_nothing_for_equal_views_without_correlations() -> None:
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert redundancy_reduction(signs, 3 * signs + 1, 1.0).item() == pytest.approx(0, abs=1e-8)
    assert redundancy_reduction(signs, -signs, 0.5).item() == pytest.approx(4, abs=1e-3)


def test_barlow_twins_compares_predictions_with_its_weight_and_reads_no_target() -> None:
    host, predictions = new_host("barlow-twins", redundancy=0.3), random_pair(0)
    nothing = torch.full((SIZE, DIMENSION), torch.nan)
    loss = host.instance_loss(predictions, (nothing, nothing))
    assert loss.item() == pytest.approx(slow_redundancy(*predictions, 0.3), abs=1e-5)


@pytest.mark.parametrize("framework", ["byol", "simsiam"])
def test_byol_and_simsiam_add_minus_the_cosines_with_the_other_view(framework: str) -> None:
    predictions, targets = random_pair(0), random_pair(1)
    expected = 0.0
    for ours, theirs in ((predictions[0], targets[1]), (predictions[1], targets[0])):
        rows = zip(ours.double().tolist(), theirs.double().tolist(), strict=True)
        expected -= sum(dot(unit(a), unit(b)) for a, b in rows) / SIZE
    assert new_host(framework).instance_loss(predictions, targets).item() == pytest.approx(expected, abs=1e-6)


# MoCo's queue


def unit_rows(pair: Pair) -> Tensor:
    return nn.functional.normalize(torch.cat(pair), dim=1)


def test_the_newest_keys_come_first_and_the_oldest_leave() -> None:
    host = new_host("moco", queue=4 * SIZE)
    for seed in range(3):
        host.remember(random_pair(seed))
    queue = host.state()["queue"]
    torch.testing.assert_close(queue, torch.cat((unit_rows(random_pair(2)), unit_rows(random_pair(1)))))


@pytest.mark.parametrize("queue", [1, SIZE, 2 * SIZE + 3, 5 * SIZE])
def test_the_queue_keeps_its_length_and_unit_vectors(queue: int) -> None:
    host = new_host("moco", queue=queue)
    for seed in range(4):
        host.instance_loss(random_pair(seed), random_pair(seed))
        assert host.state()["queue"].shape == (queue, DIMENSION)
        host.remember(random_pair(seed))
        found = host.state()["queue"]
        assert found.shape == (queue, DIMENSION)
        assert found.norm(dim=1).tolist() == pytest.approx([1.0] * queue, abs=1e-5)


def test_what_the_first_batches_do_not_fill_is_random_at_first() -> None:
    host, fresh = new_host("moco", queue=5 * SIZE), new_host("moco", queue=5 * SIZE)
    fresh.instance_loss(random_pair(0), random_pair(0))
    start = fresh.state()["queue"]
    host.remember(random_pair(0))
    torch.testing.assert_close(host.state()["queue"][2 * SIZE :], start[: 3 * SIZE])
    assert (start @ start.T).fill_diagonal_(0).abs().max() < 0.999
    assert start.mean(0).norm() < 0.3


def test_the_random_start_neither_reads_nor_moves_the_global_generator() -> None:
    queues = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        host = new_host("moco")
        host.instance_loss(random_pair(0), random_pair(1))
        assert torch.equal(torch.get_rng_state(), before)
        queues.append(host.state()["queue"])
    assert torch.equal(queues[0], queues[1])


def test_a_host_that_has_seen_nothing_has_no_state_and_takes_none() -> None:
    host = new_host("moco")
    assert host.state() == {}
    host.load_state({})
    assert host.instance_loss(random_pair(0), random_pair(1)).isfinite()


def test_keys_carry_no_gradient_into_the_next_batch() -> None:
    model, host = new_model("moco"), MoCo(Settings(framework="moco", queue=8))
    for _ in range(2):
        outputs = outputs_of(model)
        host.instance_loss(outputs.predictions, outputs.targets).backward()
        host.remember(outputs.targets)
    assert not host.state()["queue"].requires_grad
