"""What every framework promises, found from its file alone; and the losses of each against plain loops."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import small_spec
from torch import Tensor, nn

from conr import frameworks
from conr.frameworks import Framework, framework_class
from conr.frameworks.barlow_twins import redundancy_reduction
from conr.frameworks.moco import contrastive_loss
from conr.models.siamese import Outputs, Pair, Siamese
from conr.parameters.groups import Framework as Settings

SIZE, DIMENSION = 16, 8

every_framework = pytest.mark.parametrize("name", frameworks.names())


def new_model(name: str, seed: int = 0) -> Siamese:
    return small_spec(framework=name).build(seed)


def new_framework(name: str, **settings: Any) -> Framework:
    return framework_class(name)(Settings(name=name, **({"queue": 32} | settings)))


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


def random_outputs(seed: int) -> Outputs:
    """Predictions and targets; no framework's loss reads the projections."""
    nothing = torch.full((SIZE, DIMENSION), torch.nan)
    return Outputs((nothing, nothing), random_pair(seed), random_pair(seed + 100))


def keys(seed: int) -> Outputs:
    """Of which only the targets are read."""
    nothing = torch.full((SIZE, DIMENSION), torch.nan)
    return Outputs((nothing, nothing), (nothing, nothing), random_pair(seed))


def swapped(outputs: Outputs) -> Outputs:
    """The first view as the second."""
    return Outputs(outputs.projections[::-1], outputs.predictions[::-1], outputs.targets[::-1])


# Every framework


def test_frameworks_are_the_files_of_their_folder() -> None:
    files = {path.stem for path in Path(frameworks.__file__).parent.glob("*.py")} - {"__init__"}
    assert frameworks.names() == sorted(stem.replace("_", "-") for stem in files)
    assert {"byol", "simsiam", "moco", "barlow-twins"} <= set(frameworks.names())
    assert not any("_" in name for name in frameworks.names())


def test_a_new_file_is_a_new_framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_byol.py").write_text("from conr.frameworks.byol import Byol\n\nFRAMEWORK = Byol\n")
    monkeypatch.setattr(frameworks, "__path__", [*frameworks.__path__, str(tmp_path)])
    before = set(frameworks.names()) - {"plain-byol"}
    assert before | {"plain-byol"} == set(frameworks.names())
    assert framework_class("plain-byol") is framework_class("byol")


@every_framework
def test_a_framework_is_found_by_its_name_and_accepted_as_a_parameter(name: str) -> None:
    found = framework_class(name)
    assert issubclass(found, Framework)
    assert found.__module__ == f"conr.frameworks.{name.replace('-', '_')}"
    assert Settings(name=name).name == name


def test_an_unknown_framework_is_named() -> None:
    with pytest.raises(ValueError, match="'dino'"):
        framework_class("dino")
    with pytest.raises(ValueError, match="'dino'"):
        new_model("dino")


@every_framework
@pytest.mark.parametrize("dimension", [2, 8])
def test_heads_have_the_shapes_promised(name: str, dimension: int) -> None:
    found = framework_class(name)
    projector, predictor = found.projector(12, 20, dimension), found.predictor(dimension, 20, 0.01)
    features = projector(torch.rand(5, 12))
    assert features.shape == (5, dimension)
    assert predictor(features).shape == (5, dimension)


@every_framework
def test_the_loss_is_a_finite_scalar_with_a_gradient_for_every_online_parameter_and_none_for_the_target(
    name: str,
) -> None:
    model, framework = new_model(name), new_framework(name)
    loss = framework.instance_loss(outputs_of(model))
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


@every_framework
def test_the_loss_of_a_tiny_problem_falls(name: str) -> None:
    model, framework = new_model(name), new_framework(name)
    trained = [*model.online.parameters(), *model.predictor.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = framework.instance_loss(outputs_of(model))  # nothing is enqueued: the problem stays the same
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_target(torch.tensor(0.1))
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@every_framework
def test_the_loss_treats_both_views_alike(name: str) -> None:
    framework, outputs = new_framework(name), random_outputs(0)
    torch.testing.assert_close(framework.instance_loss(swapped(outputs)), framework.instance_loss(outputs))


@every_framework
def test_a_loss_changes_no_state_before_the_batch_is_enqueued(name: str) -> None:
    framework, outputs = new_framework(name), random_outputs(0)
    first = framework.instance_loss(outputs)
    assert torch.equal(framework.instance_loss(outputs), first)


@every_framework
def test_a_framework_that_takes_over_the_state_of_another_continues_like_it(name: str) -> None:
    framework = new_framework(name)
    for seed in range(3):
        framework.instance_loss(random_outputs(seed))
        framework.enqueue(random_outputs(seed))
    other = new_framework(name)
    other.load_state(copy.deepcopy(framework.state()))
    assert other.state().keys() == framework.state().keys()
    assert all(torch.equal(tensor, other.state()[key]) for key, tensor in framework.state().items())
    assert torch.equal(other.instance_loss(random_outputs(5)), framework.instance_loss(random_outputs(5)))


@every_framework
def test_the_target_follows_as_the_framework_says(name: str) -> None:
    model = new_model(name)
    assert model.moving_average is framework_class(name).moving_average
    outputs_of(model)
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter.add_(1.0)
    model.update_target(torch.tensor(0.5))
    online, target = model.online.state_dict(), model.target.state_dict()
    differing = {key for key in online if not torch.equal(online[key], target[key])}
    if model.moving_average:
        assert differing >= {key for key, _ in model.online.named_parameters()}
    else:  # weights, running statistics and counts
        assert differing == set()
        assert online["encoder.bn1.num_batches_tracked"] == 2


def test_which_frameworks_have_a_moving_average_and_which_collapse_without_their_loss() -> None:
    found = {
        name: (framework_class(name).moving_average, framework_class(name).needs_instance_loss)
        for name in frameworks.names()
    }
    known = {"byol": (True, False), "simsiam": (False, False), "moco": (True, True), "barlow-twins": (False, True)}
    assert {name: found[name] for name in known} == known


# Building


@every_framework
def test_the_same_seed_builds_the_same_weights_and_another_others(name: str) -> None:
    first, again, other = (new_model(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert not torch.equal(first["online.encoder.conv1.weight"], other["online.encoder.conv1.weight"])


@every_framework
def test_frameworks_share_the_encoder_of_a_seed(name: str) -> None:
    ours, byol = new_model(name).online.encoder.state_dict(), new_model("byol").online.encoder.state_dict()
    assert all(torch.equal(tensor, byol[key]) for key, tensor in ours.items())


@every_framework
def test_the_heads_built_are_those_of_the_framework(name: str) -> None:
    model, found = new_model(name), framework_class(name)

    def layers(module: nn.Module) -> list[tuple[type[nn.Module], list[torch.Size]]]:
        return [(type(part), [weight.shape for weight in part.parameters()]) for part in module.modules()]

    assert layers(model.online.projector) == layers(found.projector(32, 16, DIMENSION))
    assert layers(model.predictor) == layers(found.predictor(DIMENSION, 16, 0.01))


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
    queries, keys = (nn.functional.normalize(features, dim=1) for features in random_pair(seed))
    negatives = nn.functional.normalize(random_pair(seed + 10)[0], dim=1)
    loss = contrastive_loss(queries, keys, negatives, temperature)
    assert loss.item() == pytest.approx(slow_contrast(queries, keys, negatives, temperature), abs=1e-5)


def test_moco_adds_both_directions_at_its_temperature_and_against_its_queue() -> None:
    framework, outputs = new_framework("moco", temperature=0.3), random_outputs(0)
    framework.enqueue(keys(2))
    queue = framework.state()["queue"]
    expected = slow_contrast(outputs.predictions[0], outputs.targets[1], queue, 0.3)
    expected += slow_contrast(outputs.predictions[1], outputs.targets[0], queue, 0.3)
    assert framework.instance_loss(outputs).item() == pytest.approx(expected, abs=1e-5)


def slow_redundancy(first: Tensor, second: Tensor, weight: float) -> float:
    columns = []
    for features in (first, second):
        standardized = []
        for column in features.double().T.tolist():
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
            standardized.append([(value - mean) / math.sqrt(variance + 1e-5) for value in column])
        columns.append(standardized)
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
    framework, outputs = new_framework("barlow-twins", redundancy=0.3), random_outputs(0)
    nothing = torch.full((SIZE, DIMENSION), torch.nan)
    loss = framework.instance_loss(replace(outputs, targets=(nothing, nothing)))
    assert loss.item() == pytest.approx(slow_redundancy(*outputs.predictions, 0.3), abs=1e-5)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_byol_and_simsiam_add_minus_the_cosines_with_the_other_view(name: str) -> None:
    outputs, expected = random_outputs(0), 0.0
    predictions, targets = outputs.predictions, outputs.targets
    for ours, theirs in ((predictions[0], targets[1]), (predictions[1], targets[0])):
        rows = zip(ours.double().tolist(), theirs.double().tolist(), strict=True)
        expected -= sum(dot(unit(a), unit(b)) for a, b in rows) / SIZE
    assert new_framework(name).instance_loss(outputs).item() == pytest.approx(expected, abs=1e-6)


# MoCo's queue


def unit_keys(seed: int) -> Tensor:
    return nn.functional.normalize(torch.cat(random_pair(seed)), dim=1)


def test_the_newest_keys_come_first_and_the_oldest_leave() -> None:
    framework = new_framework("moco", queue=4 * SIZE)
    for seed in range(3):
        framework.enqueue(keys(seed))
    torch.testing.assert_close(framework.state()["queue"], torch.cat((unit_keys(2), unit_keys(1))))


@pytest.mark.parametrize("queue", [1, SIZE, 2 * SIZE + 3, 5 * SIZE])
def test_the_queue_keeps_its_length_and_unit_vectors(queue: int) -> None:
    framework = new_framework("moco", queue=queue)
    for seed in range(4):
        framework.instance_loss(random_outputs(seed))
        assert framework.state()["queue"].shape == (queue, DIMENSION)
        framework.enqueue(keys(seed))
        found = framework.state()["queue"]
        assert found.shape == (queue, DIMENSION)
        assert found.norm(dim=1).tolist() == pytest.approx([1.0] * queue, abs=1e-5)


def test_what_the_first_batches_do_not_fill_is_random_at_first() -> None:
    framework, fresh = new_framework("moco", queue=5 * SIZE), new_framework("moco", queue=5 * SIZE)
    fresh.instance_loss(random_outputs(0))
    start = fresh.state()["queue"]
    framework.enqueue(keys(0))
    torch.testing.assert_close(framework.state()["queue"][2 * SIZE :], start[: 3 * SIZE])
    assert (start @ start.T).fill_diagonal_(0).abs().max() < 0.999
    assert start.mean(0).norm() < 0.3


def test_the_random_start_neither_reads_nor_moves_the_global_generator() -> None:
    queues = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        framework = new_framework("moco")
        framework.instance_loss(random_outputs(0))
        assert torch.equal(torch.get_rng_state(), before)
        queues.append(framework.state()["queue"])
    assert torch.equal(queues[0], queues[1])


def test_a_framework_that_has_seen_nothing_has_no_state_and_takes_none() -> None:
    framework = new_framework("moco")
    assert framework.state() == {}
    framework.load_state({})
    assert framework.instance_loss(random_outputs(0)).isfinite()


@every_framework
def test_only_moco_enqueues(name: str) -> None:
    framework = new_framework(name)
    framework.enqueue(random_outputs(0))
    assert framework.state().keys() == ({"queue"} if name == "moco" else set())


def test_keys_carry_no_gradient_into_the_next_batch() -> None:
    model, framework = new_model("moco"), new_framework("moco", queue=8)
    for _ in range(2):
        outputs = outputs_of(model)
        framework.instance_loss(outputs).backward()
        framework.enqueue(outputs)
    assert not framework.state()["queue"].requires_grad
