"""Parameters that contradict each other are refused whoever builds them; params.yaml is one way among others."""

from typing import Any

import pytest
from project import tiny
from pydantic import ValidationError

from conr.errors import UserError
from conr.neighbors.settings import ConAff
from conr.parameters import STAGES, EvaluateStage, FinetuneStage, Parameters, PretrainStage, Stage
from conr.parameters.groups import Evaluate, Finetune, Framework, Neighborhood, Network, Optimizer, Pretrain

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"k1": 300}, "k1 = 300 is larger than finetune.batch_size = 256"),
    ({"k": 300}, "k = 300 is larger than finetune.batch_size = 256"),
    ({"k2": 21}, "k2 = 21 is larger than k1 = 20"),
    ({"optimizer.schedule_epochs": 2}, "optimizer.schedule_epochs = 2 is shorter than"),
    ({"optimizer.warmup_epochs": 10}, "optimizer.warmup_epochs = 10 must be smaller than"),
    ({"evaluate.context": 19}, "k1 = 20 is larger than evaluate.context = 19"),
    ({"framework.name": "moco"}, "framework.name = moco needs finetune.instance above 0"),
    ({"framework.name": "barlow-twins"}, "framework.name = barlow-twins needs finetune.instance above 0"),
    ({"network.bn_group": 96}, "network.bn_group = 96 does not divide pretrain.batch_size = 128"),
    (
        {"network.bn_group": 64, "finetune.batch_size": 200},
        "network.bn_group = 64 does not divide finetune.batch_size = 200",
    ),
    ({"seeds": [3, 4, 3]}, "seeds = [3, 4, 3] names a seed twice"),
]


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    """The tiny parameters as nested keys and values, with changes by dotted key."""
    content = tiny().model_dump()
    for key, value in changes.items():
        group, dot, name = key.rpartition(".")
        (content[group] if dot else content)[name] = value
    return content


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_contradictions_are_refused_in_a_file_a_change_and_a_declaration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^the file: ") as refused:
        Parameters.checked(nested(changes), "the file")
    assert message in str(refused.value)
    with pytest.raises(UserError) as refused:
        tiny().changed(changes)
    assert message in str(refused.value)
    with pytest.raises(ValidationError) as invalid:
        Parameters(**nested(changes))
    assert message in str(invalid.value)


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        (PretrainStage, {"network": Network(bn_group=96)}, "bn_group = 96 does not divide pretrain.batch_size = 256"),
        (FinetuneStage, {"k": 257}, "k = 257 is larger than finetune.batch_size = 256"),
        (FinetuneStage, {"k1": 257}, "k1 = 257 is larger than finetune.batch_size = 256"),
        (FinetuneStage, {"k1": 1, "k2": 2}, "k2 = 2 is larger than k1 = 1"),
        (FinetuneStage, {"framework": Framework(name="moco")}, "moco needs finetune.instance above 0"),
        (FinetuneStage, {"seeds": [1, 1]}, "seeds = [1, 1] names a seed twice"),
        (EvaluateStage, {"seeds": [1, 1]}, "seeds = [1, 1] names a seed twice"),
        (EvaluateStage, {"k2": 11}, "k2 = 11 is larger than k1 = 10"),
        (EvaluateStage, {"evaluate": Evaluate(context=9)}, "k1 = 10 is larger than evaluate.context = 9"),
    ],
)
def test_a_stage_s_own_parameters_are_checked_without_those_of_the_others(
    stage: type[Stage], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as invalid:
        stage(**settings)
    assert message in str(invalid.value)


def test_a_warm_up_as_long_as_the_schedule_is_refused_in_its_group() -> None:
    with pytest.raises(ValidationError, match=r"warmup_epochs = 5 must be smaller than optimizer\.schedule_epochs = 5"):
        Optimizer(warmup_epochs=5, schedule_epochs=5)


@pytest.mark.parametrize(
    "changes",
    [
        {"framework.name": "moco", "finetune.instance": 1.0},
        {"framework.name": "moco", "neighborhood.neighbors": "none"},
        {"framework.name": "simsiam"},
        {"network.bn_group": 64},
        {"evaluate.context": 20},
        {"optimizer.schedule_epochs": 3},
        {"k1": 256, "k": 256},
        {"k2": 20},
    ],
    ids=str,
)
def test_parameters_without_a_contradiction_are_accepted(changes: dict[str, Any]) -> None:
    parameters = tiny().changed(changes)
    assert parameters == Parameters.checked(nested(changes), "the file")
    for stage in STAGES.values():
        stage.of(parameters)


def test_a_change_leaves_the_parameters_that_it_starts_from() -> None:
    before = tiny()
    after = before.changed({"clusters": 12, "pretrain.epochs": 5, "boundary.filter": "none"})
    assert (after.clusters, after.pretrain.epochs, after.boundary.filter) == (12, 5, "none")
    assert before == tiny()
    assert after.changed({"clusters": 10, "pretrain.epochs": 2, "boundary.filter": "relaxed"}) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kk1": 3}, "unknown key kk1; did you mean k1?"),
        ({"finetune.epoch": 3}, "unknown key finetune.epoch; did you mean finetune.epochs?"),
        ({"nothing.of.this": 3}, "unknown key nothing"),
        ({"k1.value": 3}, "k1"),
        ({"k": 2.5}, "k = 2.5 should be a valid integer"),
        ({"k": True}, "k = True should be a valid integer"),
        ({"fr": 0, "k": "ten"}, "k = 'ten' should be a valid integer"),
    ],
)
def test_an_impossible_change_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        tiny().changed(changes)
    assert message in str(refused.value)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        tiny().changed({"fr": 0, "k": "ten", "finetune.epoch": 3})
    for part in ("fr = 0 should be greater than 0", "k = 'ten' should be", "unknown key finetune.epoch"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stage_gets_the_keys_that_it_declares_and_no_others() -> None:
    parameters = tiny({"k1": 17, "pretrain.epochs": 3, "seeds": [5, 6]})
    for stage in STAGES.values():
        own = stage.of(parameters)
        assert own.model_dump() == {
            name: value for name, value in parameters.model_dump().items() if name in stage.model_fields
        }
    assert FinetuneStage.of(parameters).all_seeds == [5, 6]
    assert FinetuneStage.of(tiny({"seed": 9})).all_seeds == [9]


def test_values_cannot_be_assigned() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny().clusters = 3
    with pytest.raises(ValidationError, match="frozen"):
        tiny().pretrain.epochs = 3


def test_the_settings_of_neighborhoods_are_made_from_the_parameters() -> None:
    settings: dict[str, Any] = {"alpha": 3.0, "layers": 1, "symmetrize": False, "normalize": False}
    parameters = FinetuneStage(k1=9, k2=3, neighborhood=Neighborhood(**settings))
    assert parameters.conaff == ConAff(k1=9, k2=3, **settings)
    assert Finetune().batch_size == Pretrain().batch_size == 256  # which the bounds above are those of
