"""Each parameter changes what it says and nothing else: same seed, one switch, the expected first difference.

A tracer writes down, in the order of computation, every tensor between the initial weights and the updated target of
two epochs of two steps. Two runs that differ in one parameter must agree bit for bit up to the tensor that this
parameter is said to change. The tables name that tensor for every parameter that `conr pretrain` and `conr finetune`
read. `prepare.*` and `evaluate.*` are not theirs: what they do is tested where images are packed and clusters scored.
"""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conr import hosts, networks, views
from conr.hosts import host_class
from conr.networks import Outputs, Pair, Siamese
from conr.parameters import FinetuneStage, Parameters, PretrainStage
from conr.training import group, instance, loop
from conr.training.checkpoints import Checkpoint
from conr.training.group import GroupConcordance, finetune
from conr.training.instance import InstanceConcordance, pretrain
from conr.training.model import build
from conr.views import ViewParameters
from stages.params_file import leaves

COUNT, SIDE, BATCH = 64, 8, 32
NETWORK = {"width": 4, "hidden": 16, "dimension": 8}
DESCRIPTION = {"architecture": "resnet18", "stem": "cifar", "bn_group": 0, "predictor_deviation": 0.01, **NETWORK}

Values = dict[str, Any]  # dotted name of a parameter → value
Trace = dict[str, tuple[Tensor, ...]]  # "epoch.step what" → its tensors, in the order of computation

BASE: dict[str, Values] = {
    "pretrain": {
        **{f"network.{name}": value for name, value in NETWORK.items()},
        "pretrain.epochs": 2,
        "pretrain.batch_size": BATCH,
    },
    "finetune": {
        "clusters": 4,
        "k": 5,
        "k1": 8,
        "k2": 4,
        "fr": 0.5,
        "finetune.epochs": 2,
        "finetune.batch_size": BATCH,
    },
}
SHARED: Values = {
    "device": "cpu",
    "precision": "float32",
    "host.queue": 80,
    "views.rotation": 10.0,
    "optimiser.base_learning_rate": 0.2,
    "optimiser.warmup_epochs": 0,
    "optimiser.schedule_epochs": 8,
    "optimiser.target_momentum": 0.9,
}


# What is expected


@dataclass(frozen=True)
class Switch:
    """A parameter's other value, and the first tensor that it changes; None if it must change nothing at all.

    Other parameters are set to what `given` says in both runs.
    """

    value: Any
    first: str | None
    given: Values | None = None


NOTHING = None
ELSEWHERE = "not a matter of what is computed"  # the reason stands beside the parameter

OTHER_HOSTS = [name for name in hosts.names() if name != "byol"]


def on(framework: str, **more: Any) -> Values:
    return {"host.framework": framework, **more}


VIEWS: dict[str, list[Switch]] = {
    "views.flip": [Switch(0.9, "1.1 view 1 flipped")],
    "views.rotation": [Switch(20.0, "1.1 view 1 angle")],
    "views.jitter": [Switch(0.3, "1.1 view 1 brightness"), Switch(0.0, "1.1 view 1 brightness")],
    "views.brightness": [Switch(0.8, "1.1 view 1 brightness")],
    "views.contrast": [Switch(0.8, "1.1 view 1 contrast")],
    "views.saturation": [Switch(0.8, "1.1 view 1 saturation")],
    "views.hue": [Switch(0.3, "1.1 view 1 hue"), Switch(0.0, "1.1 view 1 hue")],
    "views.grey": [Switch(0.6, "1.1 view 1 grey")],
}

SCATTERED = {"pretrain.scattering": 0.1, "pretrain.prototypes": 4}

PRETRAIN: dict[str, list[Switch] | str] = {
    "seed": [Switch(1, "0.0 encoder")],
    "device": ELSEWHERE,  # "auto" is the CPU where there is nothing else: test_compute.py
    "precision": [Switch("bfloat16", "1.1 projections")],
    "network.architecture": [Switch("resnet34", "0.0 encoder")],
    "network.width": [Switch(8, "0.0 encoder")],
    "network.stem": [Switch("imagenet", "0.0 encoder")],
    "network.hidden": [Switch(24, "0.0 projector")],
    "network.dimension": [Switch(12, "0.0 projector")],
    "network.bn_group": [Switch(16, "1.1 projections")],
    "network.predictor_deviation": [
        Switch(0.1, "0.0 predictor"),
        *[Switch(0.1, NOTHING, on(name)) for name in ("simsiam", "moco", "barlow-twins")],
    ],
    "host.framework": [Switch(name, "0.0 projector") for name in OTHER_HOSTS],
    "host.temperature": [
        Switch(0.5, "1.1 instance loss", on("moco")),
        *[Switch(0.5, NOTHING, on(name)) for name in ("byol", "simsiam", "barlow-twins")],
    ],
    "host.queue": [
        Switch(48, "1.1 instance loss", on("moco")),
        *[Switch(48, NOTHING, on(name)) for name in ("byol", "simsiam", "barlow-twins")],
    ],
    "host.redundancy": [
        Switch(0.1, "1.1 instance loss", on("barlow-twins")),
        *[Switch(0.1, NOTHING, on(name)) for name in ("byol", "simsiam", "moco")],
    ],
    **VIEWS,
    "optimiser.base_learning_rate": [Switch(0.1, "1.1 rate of encoder and projector")],
    "optimiser.momentum": [Switch(0.5, "1.2 weights after the step")],  # there is none to carry over in the first
    "optimiser.weight_decay": [Switch(0.01, "1.1 weights after the step")],
    "optimiser.warmup_epochs": [
        Switch(1, "1.1 rate of encoder and projector"),
        Switch(1, "1.0 centroids", SCATTERED),  # scattering waits for its end
    ],
    "optimiser.schedule_epochs": [Switch(16, "1.2 rate of encoder and projector")],  # at epoch 0 every cosine is at 1
    "optimiser.target_momentum": [Switch(0.5, "1.1 target after the update")],
    "optimiser.target_schedule": [Switch("constant", "1.2 target after the update")],
    "pretrain.epochs": [Switch(3, "3.0 centroids")],  # the first of one more epoch
    "pretrain.batch_size": [Switch(16, "1.1 batch")],
    "pretrain.crop_scale": [Switch(0.5, "1.1 view 1 crop")],
    "pretrain.predictor_rate": [Switch(1.0, "1.1 rate of predictor")],
    "pretrain.scattering": [
        Switch(0.1, "1.0 centroids"),
        Switch(0.2, "1.1 total loss", SCATTERED),
    ],
    "pretrain.scattering_temperature": [Switch(1.0, "1.1 scattering", SCATTERED), Switch(1.0, NOTHING)],
    "pretrain.prototypes": [Switch(3, "1.0 centroids", SCATTERED), Switch(3, NOTHING)],
    "pretrain.noise": [Switch(0.01, "1.1 predictions"), Switch(0.01, NOTHING, {"optimiser.warmup_epochs": 2})],
}

LOCAL = {"neighbourhood.neighbours": "local"}
INSTANCE_ONLY = {"neighbourhood.neighbours": "none"}
WITH_INSTANCE = {"finetune.instance": 0.5}
ALL_SAMPLES = {"boundary.filter": "none"}

FINETUNE: dict[str, list[Switch] | str] = {
    "seed": [Switch(100, "1.0 centroids")],  # not 1: restart r of k-means has the seed plus r, so 39 of 40 are shared
    "seeds": [Switch([3, 4], NOTHING)],  # the stage's business: it fine-tunes once with each as the seed
    "device": ELSEWHERE,  # as above
    "precision": [Switch("bfloat16", "1.0 centroids")],
    "clusters": [Switch(3, "1.0 centroids")],
    "k": [
        Switch(6, "1.1 neighbours"),
        Switch(6, "1.1 neighbours", LOCAL),
        Switch(6, NOTHING, INSTANCE_ONLY),
    ],
    "k1": [Switch(5, "1.1 neighbours"), Switch(5, NOTHING, LOCAL), Switch(5, NOTHING, INSTANCE_ONLY)],
    "k2": [Switch(2, "1.1 neighbours"), Switch(2, NOTHING, LOCAL), Switch(2, NOTHING, INSTANCE_ONLY)],
    "fr": [
        Switch(0.8, "1.0 share of candidates"),
        Switch(0.8, "1.0 share of candidates", {"boundary.filter": "fixed"}),
        Switch(0.8, NOTHING, ALL_SAMPLES),
    ],
    "host.framework": [Switch(name, "0.0 projector", WITH_INSTANCE) for name in OTHER_HOSTS],
    "host.temperature": [
        Switch(0.5, "1.1 instance loss", on("moco") | WITH_INSTANCE),
        Switch(0.5, NOTHING, on("moco")),
        Switch(0.5, NOTHING, WITH_INSTANCE),
    ],
    "host.queue": [
        Switch(48, "1.1 instance loss", on("moco") | WITH_INSTANCE),
        Switch(48, NOTHING, WITH_INSTANCE),
    ],
    "host.redundancy": [
        Switch(0.1, "1.1 instance loss", on("barlow-twins") | WITH_INSTANCE),
        Switch(0.1, NOTHING, on("barlow-twins")),
        Switch(0.1, NOTHING, WITH_INSTANCE),
    ],
    "neighbourhood.neighbours": [Switch("local", "1.1 neighbours"), Switch("none", "1.1 neighbours")],
    "neighbourhood.alpha": [Switch(0.0, "1.1 neighbours"), Switch(0.0, NOTHING, LOCAL)],
    "neighbourhood.layers": [
        Switch(1, "1.1 neighbours"),
        Switch(1, NOTHING, LOCAL),
        Switch(1, NOTHING, {"k2": 1}),  # no neighbours to propagate from
    ],
    "neighbourhood.symmetrise": [Switch(False, "1.1 neighbours"), Switch(False, NOTHING, LOCAL)],
    "neighbourhood.normalise": [Switch(False, "1.1 neighbours"), Switch(False, NOTHING, LOCAL)],
    "boundary.filter": [Switch("none", "1.0 share of candidates"), Switch("fixed", "2.0 share of candidates")],
    "boundary.relaxation": [Switch(0.5, "2.0 share of candidates"), Switch(0.5, NOTHING, ALL_SAMPLES)],
    **VIEWS,
    "optimiser.base_learning_rate": [Switch(0.1, "1.1 rate of encoder and projector")],
    "optimiser.momentum": [Switch(0.5, "1.2 weights after the step")],
    "optimiser.weight_decay": [Switch(0.01, "1.1 weights after the step")],
    "optimiser.warmup_epochs": [Switch(4, "1.1 rate of encoder and projector")],
    "optimiser.schedule_epochs": [Switch(16, "1.1 rate of encoder and projector")],  # it started in pretraining
    "optimiser.target_momentum": [Switch(0.5, "1.1 target after the update")],
    "optimiser.target_schedule": [Switch("constant", "1.1 target after the update")],
    "finetune.epochs": [
        Switch(3, "2.0 share of candidates"),  # which takes longer to grow
        Switch(3, "3.0 centroids", ALL_SAMPLES),
    ],
    "finetune.batch_size": [Switch(16, "1.1 batch")],
    "finetune.crop_scale": [Switch(0.9, "1.1 view 1 crop")],
    "finetune.rate": [Switch(1.0, "1.1 rate of encoder and projector")],
    "finetune.predictor_rate": [Switch(1.0, "1.1 rate of predictor")],
    "finetune.instance": [
        Switch(0.5, "1.1 instance loss"),
        Switch(1.0, "1.1 total loss", WITH_INSTANCE),
        Switch(0.5, NOTHING, INSTANCE_ONLY),  # it is all the loss there is, at weight 1
    ],
    "finetune.divisor": [Switch("batch", "1.1 group term"), Switch("batch", NOTHING, ALL_SAMPLES)],
    "finetune.scattering": [
        Switch(0.1, "1.1 scattering"),
        Switch(0.2, "1.1 total loss", {"finetune.scattering": 0.1}),
        Switch(0.1, "1.1 scattering", INSTANCE_ONLY),
    ],
    "finetune.scattering_temperature": [
        Switch(1.0, "1.1 scattering", {"finetune.scattering": 0.1}),
        Switch(1.0, "1.1 apart", {"finetune.boost": 1.0}),
        Switch(1.0, NOTHING),
    ],
    "finetune.boost": [
        Switch(1.0, "1.1 instance loss"),  # the first of its three terms
        Switch(2.0, "1.1 total loss", {"finetune.boost": 1.0}),
    ],
    "finetune.boost_neighbours": [
        Switch(1, "1.1 confident samples", {"finetune.boost": 1.0, "clusters": 2}),
        Switch(1, NOTHING),
    ],
}

STAGES: dict[str, type[Parameters]] = {"pretrain": PretrainStage, "finetune": FinetuneStage}
TABLES = {"pretrain": PRETRAIN, "finetune": FINETUNE}
SWITCHES = [
    pytest.param(
        stage, name, switch, id=" ".join([stage, f"{name}={switch.value}", *(f"{k}={v}" for k, v in given.items())])
    )
    for stage, table in TABLES.items()
    for name, switches in table.items()
    if not isinstance(switches, str)
    for switch in switches
    for given in [switch.given or {}]
]


# The tracer


class Tracer:
    """Writes tensors down as they are computed."""

    def __init__(self) -> None:
        self.trace: Trace = {}
        self.epoch, self.step, self.view = 0, 0, 0

    def note(self, what: str, *tensors: Tensor | float | None) -> None:
        """The second of a kind within a step, such as that of the other direction, gets a name of its own."""
        name = f"{self.epoch}.{self.step} {what}"
        while name in self.trace:
            name += " again"
        self.trace[name] = tuple(torch.as_tensor(tensor).detach().clone() for tensor in tensors if tensor is not None)

    def noted(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        """A function whose result is noted."""

        def traced(*arguments: Any, **settings: Any) -> Any:
            result = function(*arguments, **settings)
            self.note(what, result)
            return result

        return traced

    def install(self, patch: pytest.MonkeyPatch, framework: str) -> None:
        """Put the tracer between the training loop and what it calls."""
        for module, names in {
            group: {
                "conaff": "neighbours",
                "euclidean": "neighbours",
                "boundary_ratio": "boundary ratio",
                "candidates": "candidates",
                "group_concordance": "group term",
                "scattering": "scattering",
                "high_confidence": "confident samples",
                "group_compactness": "compactness",
                "prototype_scattering": "apart",
            },
            instance: {"scattering": "scattering"},
            host_class(framework): {"instance_loss": "instance loss"},
            GroupConcordance: {"loss": "total loss"},
            InstanceConcordance: {"loss": "total loss"},
        }.items():
            for name, what in names.items():
                patch.setattr(module, name, self.noted(getattr(module, name), what))
        for objective in (GroupConcordance, InstanceConcordance):
            patch.setattr(objective, "start_epoch", self._start_epoch(objective.start_epoch))
        patch.setattr(loop, "_batches", self._batches(loop._batches))
        patch.setattr(loop, "_set_rates", self._set_rates(loop._set_rates))
        patch.setattr(loop, "_optimiser", self._optimiser(loop._optimiser))
        patch.setattr(views, "draw", self._draw(views.draw))
        patch.setattr(loop, "two_views", self._two_views(loop.two_views))
        patch.setattr(Siamese, "forward", self._forward(Siamese.forward))
        patch.setattr(Siamese, "update_target", self._update_target(Siamese.update_target))

    def initial_weights(self, model: Siamese) -> None:
        self.note("encoder", *model.online.encoder.state_dict().values())
        self.note("projector", *model.online.projector.state_dict().values())
        self.note("predictor", *model.predictor.state_dict().values())
        self.note("target", *model.target.state_dict().values())

    def _start_epoch(self, original: Callable[..., None]) -> Callable[..., None]:
        def traced(objective: GroupConcordance | InstanceConcordance, epoch: int) -> None:
            self.epoch, self.step = epoch + 1, 0
            original(objective, epoch)
            self.note("centroids", objective.pseudo_labels.centroids)
            self.note("pseudo labels", objective.pseudo_labels.assignments)
            if isinstance(objective, GroupConcordance):
                self.note("share of candidates", objective.fraction)

        return traced

    def _batches(self, original: Callable[..., Iterator[Pair]]) -> Callable[..., Iterator[Pair]]:
        def traced(*arguments: Any) -> Iterator[Pair]:
            for step, (indices, places) in enumerate(original(*arguments), start=1):
                self.step, self.view = step, 0
                self.note("batch", indices)
                yield indices, places

        return traced

    def _set_rates(self, original: Callable[..., None]) -> Callable[..., None]:
        def traced(optimiser: torch.optim.SGD, *arguments: Any) -> None:
            original(optimiser, *arguments)
            for what, settings in zip(("encoder and projector", "predictor"), optimiser.param_groups, strict=True):
                self.note(f"rate of {what}", torch.tensor(settings["lr"], dtype=torch.float64))

        return traced

    def _optimiser(self, original: Callable[..., torch.optim.SGD]) -> Callable[..., torch.optim.SGD]:
        def traced(*arguments: Any) -> torch.optim.SGD:
            optimiser = original(*arguments)
            parameters = [parameter for part in optimiser.param_groups for parameter in part["params"]]
            optimiser.register_step_pre_hook(lambda *_: self.note("gradient", *(p.grad for p in parameters)))
            optimiser.register_step_post_hook(lambda *_: self.note("weights after the step", *parameters))
            return optimiser

        return traced

    def _draw(self, original: Callable[..., ViewParameters]) -> Callable[..., ViewParameters]:
        def traced(*arguments: Any) -> ViewParameters:
            drawn = original(*arguments)
            self.view += 1
            for field in fields(drawn):
                self.note(f"view {self.view} {field.name}", getattr(drawn, field.name))
            return drawn

        return traced

    def _two_views(self, original: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
        def traced(*arguments: Any) -> tuple[Tensor, Tensor]:
            pair = original(*arguments)
            self.note("pixels of both views", *pair)
            return pair

        return traced

    def _forward(self, original: Callable[..., Outputs]) -> Callable[..., Outputs]:
        def traced(*arguments: Any) -> Outputs:
            outputs = original(*arguments)
            for field in fields(outputs):
                self.note(field.name, *getattr(outputs, field.name))
            return outputs

        return traced

    def _update_target(self, original: Callable[..., None]) -> Callable[..., None]:
        def traced(model: Siamese, momentum: float) -> None:
            original(model, momentum)
            self.note("target after the update", *model.target.state_dict().values())

        return traced


class Forgetful(Checkpoint):
    """Keeps nothing: the runs are short."""

    due = False

    def __init__(self) -> None:
        pass

    def load(self) -> None:
        return None

    def save(self, state: object) -> None:
        pass


def nested(values: Values) -> dict[str, Any]:
    """Dotted names as the nested mapping of params.yaml."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        place = result
        for part in groups:
            place = place.setdefault(part, {})
        place[name] = value
    return result


def traced(stage: str, values: Values) -> Trace:
    """The trace of a stage with its base parameters, but for some values. Runs with equal values are run once."""
    return _traced(stage, json.dumps(SHARED | BASE[stage] | values, sort_keys=True))


@functools.cache
def _traced(stage: str, values: str) -> Trace:
    parameters = STAGES[stage].model_validate(nested(json.loads(values)))
    tracer = Tracer()
    with pytest.MonkeyPatch.context() as patch:
        tracer.install(patch, parameters.host.framework)
        patch.setitem(networks.BLOCKS_PER_STAGE, "resnet18", (1, 1, 1, 1))  # for speed: there are many runs
        description = DESCRIPTION | {"framework": parameters.host.framework, "mean": [0.5] * 3, "std": [0.25] * 3}
        if isinstance(parameters, PretrainStage):
            torch.manual_seed(parameters.seed)  # as the stage does
            model = build(description | parameters.network.model_dump())
            tracer.initial_weights(model)
            pretrain(model, images(), None, parameters, Forgetful())
        else:
            torch.manual_seed(0)  # the pretrained weights are given
            model = build(description)
            tracer.initial_weights(model)
            finetune(model, images(), None, parameters, 2, Forgetful())
    return tracer.trace


@functools.cache
def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise about one of four random patterns."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (4, SIDE, SIDE, 3))
    noisy = patterns[np.arange(COUNT) % 4] + random.normal(scale=40, size=(COUNT, SIDE, SIDE, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def first_difference(before: Trace, after: Trace) -> str | None:
    """The name of the first tensor that differs or that only one of the two runs computes."""
    ours, theirs = list(before), list(after)
    for name, other in zip(ours, theirs, strict=False):
        if name != other:
            return name if name not in after else other
        if not equal(before[name], after[name]):
            return name
    return next(iter(ours[len(theirs) :] + theirs[len(ours) :]), None)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads; and for networks this small, one is the fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    _traced.cache_clear()


# The tests


@pytest.mark.parametrize("stage", STAGES)
def test_the_table_has_every_parameter_of_the_stage(stage: str) -> None:
    names = [".".join(key) for key, _ in leaves(STAGES[stage])]
    assert sorted(TABLES[stage]) == sorted(names)


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_parameters_give_the_same_trace(stage: str) -> None:
    once = traced(stage, {})
    _traced.cache_clear()
    torch.rand(7)  # the state of the global generator must not matter
    assert first_difference(once, traced(stage, {})) is None


@pytest.mark.parametrize("stage", STAGES)
def test_the_trace_holds_the_steps_in_their_order(stage: str) -> None:
    everything = {
        "pretrain": SCATTERED,
        "finetune": {"finetune.instance": 0.5, "finetune.scattering": 0.1, "finetune.boost": 1.0},
    }
    drawn = [f"view {view} {field.name}" for view in (1, 2) for field in fields(ViewParameters)]
    one_way = ["neighbours", "boundary ratio", "candidates", "group term"]
    boost = ["instance loss again", "confident samples", "compactness", "apart"]
    terms = {
        "pretrain": ["instance loss", "scattering"],
        "finetune": [
            *one_way,
            *(f"{what} again" for what in one_way),
            "instance loss",
            "scattering",
            *boost,
            *(f"{what} again" for what in boost[1:]),
        ],
    }
    step = [
        "batch",
        "rate of encoder and projector",
        "rate of predictor",
        *drawn,
        "pixels of both views",
        "projections",
        "predictions",
        "targets",
        *terms[stage],
        "total loss",
        "gradient",
        "weights after the step",
        "target after the update",
    ]
    start = ["centroids", "pseudo labels", *(["share of candidates"] if stage == "finetune" else [])]
    expected = [f"0.0 {what}" for what in ("encoder", "projector", "predictor", "target")]
    for epoch in (1, 2):
        expected += [f"{epoch}.0 {what}" for what in start]
        expected += [f"{epoch}.{number} {what}" for number in (1, 2) for what in step]
    assert list(traced(stage, everything[stage])) == expected


@pytest.mark.parametrize(("stage", "name", "switch"), SWITCHES)
def test_a_parameter_changes_what_it_says_first(stage: str, name: str, switch: Switch) -> None:
    given = switch.given or {}
    before, after = traced(stage, given), traced(stage, given | {name: switch.value})
    assert first_difference(before, after) == switch.first


# Parameters that may change the order of images or the views; all others leave a run's data as they are.
DATA = {"seed", "pretrain.batch_size", "finetune.batch_size", "pretrain.crop_scale", "finetune.crop_scale", *VIEWS}


def data_of(trace: Trace) -> Trace:
    return {name: tensors for name, tensors in trace.items() if "view" in name or "batch" in name}


@pytest.mark.parametrize(("stage", "name", "switch"), [case for case in SWITCHES if case.values[1] not in DATA])
def test_what_is_no_matter_of_the_data_leaves_them_as_they_are(stage: str, name: str, switch: Switch) -> None:
    given = switch.given or {}
    before, after = (data_of(traced(stage, values)) for values in (given, given | {name: switch.value}))
    shared = [step for step in before if step in after]
    assert len(shared) == min(len(before), len(after))
    assert [step for step in shared if not equal(before[step], after[step])] == []


DRAWN = {
    "views.flip": {"flipped"},
    "views.rotation": {"angle"},
    "views.jitter": {"brightness", "contrast", "saturation", "hue"},
    "pretrain.crop_scale": {"crop"},
    "finetune.crop_scale": {"crop"},
}


@pytest.mark.parametrize(("stage", "name", "switch"), [case for case in SWITCHES if case.values[1] in {*VIEWS, *DRAWN}])
def test_a_range_of_the_views_changes_its_own_draws_in_all_steps_and_no_others(
    stage: str, name: str, switch: Switch
) -> None:
    before, after = traced(stage, {}), traced(stage, {name: switch.value})
    changed = DRAWN.get(name, {name.removeprefix("views.")})
    for step in data_of(before):
        kind = step.split()[-1]
        if kind in changed:
            assert not equal(before[step], after[step])
        elif step.split()[1] == "view" or kind == "batch":
            assert equal(before[step], after[step])
