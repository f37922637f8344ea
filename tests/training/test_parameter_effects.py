"""Each parameter changes what it says and nothing else: same seed, one switch, the expected first difference.

An observer writes down, in the order of computation, every tensor between the initial weights and the updated target of
two epochs of two steps. Two runs that differ in one parameter must agree bit for bit up to the tensor that this
parameter is said to change. The tables name that tensor for every parameter that `conr pretrain` and `conr finetune`
read. `prepare.*` and `evaluate.*` are not theirs: what they do is tested where images are packed and clusters scored.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import Unsaved, patterned, small_spec
from torch import Tensor

from conr import frameworks
from conr.models import resnet
from conr.models.siamese import Siamese
from conr.observer import Observer
from conr.parameters import FinetuneStage, PretrainStage
from conr.parameters.groups import Group
from conr.parameters.keys import leaves
from conr.refinement.objective import finetune
from conr.training.pretraining import pretrain
from conr.training.views import ViewParameters

COUNT, BATCH = 64, 32
NETWORK = {"width": 4, "hidden": 16, "dimension": 8}

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
    "framework.queue": 80,
    "views.rotation": 10.0,
    "optimizer.base_learning_rate": 0.2,
    "optimizer.warmup_epochs": 0,
    "optimizer.schedule_epochs": 8,
    "optimizer.target_momentum": 0.9,
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

OTHER_FRAMEWORKS = [name for name in frameworks.names() if name != "byol"]


def on(framework: str, **more: Any) -> Values:
    return {"framework.name": framework, **more}


VIEWS: dict[str, list[Switch]] = {
    "views.flip": [Switch(0.9, "1.1 view 1 flipped")],
    "views.rotation": [Switch(20.0, "1.1 view 1 angle")],
    "views.jitter": [Switch(0.3, "1.1 view 1 brightness"), Switch(0.0, "1.1 view 1 brightness")],
    "views.brightness": [Switch(0.8, "1.1 view 1 brightness")],
    "views.contrast": [Switch(0.8, "1.1 view 1 contrast")],
    "views.saturation": [Switch(0.8, "1.1 view 1 saturation")],
    "views.hue": [Switch(0.3, "1.1 view 1 hue"), Switch(0.0, "1.1 view 1 hue")],
    "views.grayscale": [Switch(0.6, "1.1 view 1 grayscale")],
    "views.resolution": [Switch([[0, 0.75]], "1.1 pixels"), Switch([[0, 1]], NOTHING)],  # crops are those of the image
}

SCATTERED = {"pretrain.scattering": 0.1, "pretrain.prototypes": 4}

PRETRAIN: dict[str, list[Switch] | str] = {
    "seed": [Switch(1, "0.0 encoder")],
    "device": ELSEWHERE,  # "auto" is the CPU where there is nothing else: test_compute.py
    "precision": [Switch("bfloat16", "1.1 projections")],
    "network.backbone": ELSEWHERE,  # the weights that an encoder starts from: test_starting_weights.py
    "network.encoder": ELSEWHERE,  # frozen, nothing is trained: test_frozen_backbone.py
    "network.architecture": [Switch("resnet34", "0.0 encoder")],
    "network.width": [Switch(8, "0.0 encoder")],
    "network.stem": [Switch("imagenet", "0.0 encoder")],
    "network.hidden": [Switch(24, "0.0 projector")],
    "network.dimension": [Switch(12, "0.0 projector")],
    "network.bn_group": [Switch(16, "1.1 projections")],
    "network.predictor_init_std": [
        Switch(0.1, "0.0 predictor"),
        *[Switch(0.1, NOTHING, on(name)) for name in ("simsiam", "moco", "barlow-twins")],
    ],
    "framework.name": [Switch(name, "0.0 projector") for name in OTHER_FRAMEWORKS],
    "framework.temperature": [
        Switch(0.5, "1.1 instance loss", on("moco")),
        *[Switch(0.5, NOTHING, on(name)) for name in ("byol", "simsiam", "barlow-twins")],
    ],
    "framework.queue": [
        Switch(48, "1.1 instance loss", on("moco")),
        *[Switch(48, NOTHING, on(name)) for name in ("byol", "simsiam", "barlow-twins")],
    ],
    "framework.redundancy": [
        Switch(0.1, "1.1 instance loss", on("barlow-twins")),
        *[Switch(0.1, NOTHING, on(name)) for name in ("byol", "simsiam", "moco")],
    ],
    **VIEWS,
    "optimizer.base_learning_rate": [Switch(0.1, "1.1 learning rate of encoder and projector")],
    "optimizer.momentum": [Switch(0.5, "1.2 weights")],  # there is none to carry over in the first
    "optimizer.weight_decay": [Switch(0.01, "1.1 weights")],
    "optimizer.warmup_epochs": [
        Switch(1, "1.1 learning rate of encoder and projector"),
        Switch(1, "1.0 centroids", SCATTERED),  # scattering waits for its end
    ],
    "optimizer.schedule_epochs": [
        Switch(16, "1.2 learning rate of encoder and projector")
    ],  # at epoch 0 every cosine is at 1
    "optimizer.target_momentum": [Switch(0.5, "1.1 target weights")],
    "optimizer.target_schedule": [Switch("constant", "1.2 target weights")],
    "training.graph": ELSEWHERE,  # how a GPU computes the same: test_recording.py
    "training.processes": ELSEWHERE,  # who computes the same: test_together.py
    "training.threads": ELSEWHERE,  # with how many threads: test_threads.py
    "pretrain.epochs": [Switch(3, "3.0 centroids")],  # the first of one more epoch
    "pretrain.batch_size": [Switch(16, "1.1 batch")],
    "pretrain.cached_views": ELSEWHERE,  # of a frozen backbone: test_frozen_backbone.py
    "pretrain.crop_scale": [Switch(0.5, "1.1 view 1 crop")],
    "pretrain.predictor_lr_scale": [Switch(1.0, "1.1 learning rate of predictor")],
    "pretrain.scattering": [
        Switch(0.1, "1.0 centroids"),
        Switch(0.2, "1.1 total loss", SCATTERED),
    ],
    "pretrain.scattering_temperature": [Switch(1.0, "1.1 scattering loss", SCATTERED), Switch(1.0, NOTHING)],
    "pretrain.prototypes": [Switch(3, "1.0 centroids", SCATTERED), Switch(3, NOTHING)],
    "pretrain.noise_std": [Switch(0.01, "1.1 predictions"), Switch(0.01, NOTHING, {"optimizer.warmup_epochs": 2})],
}

LOCAL = {"neighborhood.neighbors": "local"}
INSTANCE_ONLY = {"neighborhood.neighbors": "none"}
WITH_INSTANCE = {"finetune.instance": 0.5}
ALL_SAMPLES = {"boundary.filter": "none"}

FINETUNE: dict[str, list[Switch] | str] = {
    "seed": [Switch(1, "1.0 centroids")],
    "seeds": [Switch([3, 4], NOTHING)],  # the stage's business: it fine-tunes once with each as the seed
    "device": ELSEWHERE,  # as above
    "precision": [Switch("bfloat16", "1.0 centroids")],
    "clusters": [Switch(3, "1.0 centroids")],
    "k": [
        Switch(6, "1.1 neighbors"),
        Switch(6, "1.1 neighbors", LOCAL),
        Switch(6, NOTHING, INSTANCE_ONLY),
    ],
    "k1": [Switch(5, "1.1 neighbors"), Switch(5, NOTHING, LOCAL), Switch(5, NOTHING, INSTANCE_ONLY)],
    "k2": [Switch(2, "1.1 neighbors"), Switch(2, NOTHING, LOCAL), Switch(2, NOTHING, INSTANCE_ONLY)],
    "fr": [
        Switch(0.8, "1.0 candidate fraction"),
        Switch(0.8, "1.0 candidate fraction", {"boundary.filter": "fixed"}),
        Switch(0.8, NOTHING, ALL_SAMPLES),
    ],
    "framework.name": [Switch(name, "0.0 projector", WITH_INSTANCE) for name in OTHER_FRAMEWORKS],
    "framework.temperature": [
        Switch(0.5, "1.1 instance loss", on("moco") | WITH_INSTANCE),
        Switch(0.5, "1.1 instance loss", on("moco") | INSTANCE_ONLY),
        Switch(0.5, NOTHING, WITH_INSTANCE),
    ],
    "framework.queue": [
        Switch(48, "1.1 instance loss", on("moco") | WITH_INSTANCE),
        Switch(48, NOTHING, WITH_INSTANCE),
    ],
    "framework.redundancy": [
        Switch(0.1, "1.1 instance loss", on("barlow-twins") | WITH_INSTANCE),
        Switch(0.1, "1.1 instance loss", on("barlow-twins") | INSTANCE_ONLY),
        Switch(0.1, NOTHING, WITH_INSTANCE),
    ],
    "neighborhood.neighbors": [
        Switch("local", "1.1 neighbors"),
        Switch("none", "1.0 candidate fraction"),  # there are no candidates
    ],
    "neighborhood.alpha": [Switch(0.0, "1.1 neighbors"), Switch(0.0, NOTHING, LOCAL)],
    "neighborhood.layers": [
        Switch(1, "1.1 neighbors"),
        Switch(1, NOTHING, LOCAL),
        Switch(1, NOTHING, {"k2": 1}),  # no neighbors to propagate from
    ],
    "neighborhood.symmetrize": [Switch(False, "1.1 neighbors"), Switch(False, NOTHING, LOCAL)],
    "neighborhood.normalize": [Switch(False, "1.1 neighbors"), Switch(False, NOTHING, LOCAL)],
    "boundary.filter": [Switch("none", "1.0 candidate fraction"), Switch("fixed", "2.0 candidate fraction")],
    "boundary.relaxation": [Switch(0.5, "2.0 candidate fraction"), Switch(0.5, NOTHING, ALL_SAMPLES)],
    **VIEWS,
    "optimizer.base_learning_rate": [Switch(0.1, "1.1 learning rate of encoder and projector")],
    "optimizer.momentum": [Switch(0.5, "1.2 weights")],
    "optimizer.weight_decay": [Switch(0.01, "1.1 weights")],
    "optimizer.warmup_epochs": [Switch(4, "1.1 learning rate of encoder and projector")],
    "optimizer.schedule_epochs": [
        Switch(16, "1.1 learning rate of encoder and projector")
    ],  # it started in pretraining
    "optimizer.target_momentum": [Switch(0.5, "1.1 target weights")],
    "optimizer.target_schedule": [Switch("constant", "1.1 target weights")],
    "training.graph": ELSEWHERE,  # as above
    "training.processes": ELSEWHERE,  # as above
    "training.threads": ELSEWHERE,  # as above
    "finetune.epochs": [
        Switch(3, "2.0 candidate fraction"),  # which takes longer to grow
        Switch(3, "3.0 centroids", ALL_SAMPLES),
    ],
    "finetune.patience": ELSEWHERE,  # how many epochs there are: test_patience.py
    "finetune.batch_size": [Switch(16, "1.1 batch")],
    "finetune.crop_scale": [Switch(0.9, "1.1 view 1 crop")],
    "finetune.lr_scale": [Switch(1.0, "1.1 learning rate of encoder and projector")],
    "finetune.predictor_lr_scale": [Switch(1.0, "1.1 learning rate of predictor")],
    "finetune.instance": [
        Switch(0.5, "1.1 instance loss"),
        Switch(1.0, "1.1 total loss", WITH_INSTANCE),
        Switch(0.5, NOTHING, INSTANCE_ONLY),  # it is all the loss there is, at weight 1
    ],
    "finetune.divisor": [Switch("batch", "1.1 one direction"), Switch("batch", NOTHING, ALL_SAMPLES)],
    "finetune.scattering": [
        Switch(0.1, "1.1 scattering loss"),
        Switch(0.2, "1.1 total loss", {"finetune.scattering": 0.1}),
        Switch(0.1, "1.1 scattering loss", INSTANCE_ONLY),
    ],
    "finetune.scattering_temperature": [
        Switch(1.0, "1.1 scattering loss", {"finetune.scattering": 0.1}),
        Switch(1.0, "1.1 apart", {"finetune.boost": 1.0}),
        Switch(1.0, NOTHING),
    ],
    "finetune.boost": [
        Switch(1.0, "1.1 boosted instance loss"),  # the first of its three parts
        Switch(2.0, "1.1 total loss", {"finetune.boost": 1.0}),
    ],
    "finetune.boost_neighbors": [
        Switch(1, "1.1 confident samples", {"finetune.boost": 1.0, "clusters": 2}),
        Switch(1, NOTHING),
    ],
}

STAGES: dict[str, type[Group]] = {"pretrain": PretrainStage, "finetune": FinetuneStage}
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


class Tracer(Observer):
    """Writes values down as they are computed."""

    def __init__(self) -> None:
        self.trace: Trace = {}
        self.epoch, self.step = 1, 0

    def note(self, what: str, *tensors: Tensor | float | None, at: str = "") -> None:
        """The second of a kind within a step, such as that of the other direction, gets a name of its own."""
        name = f"{at or f'{self.epoch}.{self.step}'} {what}"
        while name in self.trace:
            name += " again"
        self.trace[name] = tuple(torch.as_tensor(tensor).detach().clone() for tensor in tensors if tensor is not None)

    def initial_weights(self, model: Siamese) -> None:
        for name, part in (
            ("encoder", model.online.encoder),
            ("projector", model.online.projector),
            ("predictor", model.predictor),
            ("target", model.target),
        ):
            self.note(name, *part.state_dict().values(), at="0.0")

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        self.epoch, self.step = self.epoch + 1, 0

    def traced(self, name: str, value: Any) -> None:
        if name == "batch":
            self.step += 1
        if name == "learning rates":
            for what, rate in zip(("encoder and projector", "predictor"), value, strict=True):
                self.note(f"learning rate of {what}", torch.tensor(rate, dtype=torch.float64))
        elif name == "gradient":
            self.note(name, *(parameter.grad for parameter in value))
        elif is_dataclass(value):  # the parameters of a view, or the outputs of the networks
            prefix = "" if name == "outputs" else f"{name} "
            for field in fields(value):
                part = getattr(value, field.name)
                self.note(prefix + field.name, *(part if isinstance(part, tuple) else [part]))
        else:
            self.note(name, *(value if isinstance(value, list | tuple) else [value]))


def nested(values: Values) -> dict[str, Any]:
    """Dotted names as the nested mapping of params.yaml."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        group = result
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = value
    return result


def traced(stage: str, values: Values) -> Trace:
    """The trace of a stage with its base parameters, but for some values. Runs with equal values are run once."""
    return _traced(stage, json.dumps(SHARED | BASE[stage] | values, sort_keys=True))


@functools.cache
def _traced(stage: str, values: str) -> Trace:
    parameters = STAGES[stage].model_validate(nested(json.loads(values)))
    tracer, pixels = Tracer(), patterned(np.arange(COUNT) % 4, noise=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS_PER_STAGE, "resnet18", (1, 1, 1, 1))  # for speed: there are many runs
        if isinstance(parameters, PretrainStage):
            spec = small_spec(**parameters.network.layers, framework=parameters.framework.name)
            model = spec.build(parameters.seed)  # as the stage does
            tracer.initial_weights(model)
            pretrain(model, pixels, None, parameters, Unsaved(), tracer)
        else:
            model = small_spec(framework=parameters.framework.name).build(seed=0)  # the pretrained weights are given
            tracer.initial_weights(model)
            finetune(model, pixels, None, parameters, 2, Unsaved(), tracer)
    return tracer.trace


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
    group = ["neighbors", "boundary ratio", "candidates", "one direction"]
    boost = ["confident samples", "compactness", "apart"]
    terms = {
        "pretrain": ["instance loss", "scattering loss"],
        "finetune": [
            *group,
            *(f"{what} again" for what in group),
            "group loss",
            "instance loss",
            "scattering loss",
            "boosted instance loss",
            *boost,
            *(f"{what} again" for what in boost),
            "boost loss",
        ],
    }
    step = [
        "batch",
        "learning rate of encoder and projector",
        "learning rate of predictor",
        *drawn,
        "pixels",
        "projections",
        "predictions",
        "targets",
        *terms[stage],
        "total loss",
        "gradient",
        "weights",
        "target weights",
    ]
    start = ["centroids", "pseudo labels", *(["candidate fraction"] if stage == "finetune" else [])]
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
    return {name: tensors for name, tensors in trace.items() if name.split()[1] in {"batch", "view", "pixels"}}


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
