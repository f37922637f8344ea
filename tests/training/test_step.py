"""The training step against a loop in which every operation is written out: the same weights and log, bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import Unsaved, patterned, small_spec
from torch import Tensor

from conr import frameworks
from conr.clustering.kmeans import kmeans_tensors
from conr.errors import Note
from conr.frameworks.barlow_twins import redundancy_reduction
from conr.frameworks.moco import contrastive_loss
from conr.losses.concordance import instance_concordance
from conr.losses.prototypes import membership, prototype_scattering
from conr.models import resnet
from conr.models.siamese import Outputs, Siamese
from conr.neighbors.boundary import boundary_ratio, candidates
from conr.neighbors.conaff import conaff, euclidean
from conr.neighbors.purity import purity_by_rank
from conr.parameters import FinetuneStage, Optimizer, PretrainStage, Training, Views
from conr.parameters.groups import Finetune, Framework, Neighborhood, Pretrain
from conr.refinement.confidence import group_compactness, high_confidence
from conr.refinement.group import group_concordance
from conr.refinement.objective import candidate_fraction, finetune
from conr.training import compiling
from conr.training.compute import Compute, clean_features
from conr.training.execution import Execution
from conr.training.pretraining import pretrain
from conr.training.schedules import learning_rate, target_momentum
from conr.training.views import two_views

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, BATCH, EPOCHS, CLUSTERS, FIRST = 32, 16, 3, 4, 2
LABELS = np.random.default_rng(1).integers(-1, CLUSTERS, COUNT)
IMAGES = patterned(np.arange(COUNT) % CLUSTERS)
PLAIN = Execution()


def parameters_of(stage: str, framework: str, precision: str, settings: Mapping[str, Any]) -> Any:
    """Parameters of a stage, whose own group has some other settings."""
    optimizer = Optimizer(base_learning_rate=0.5, warmup_epochs=1, schedule_epochs=8, target_momentum=0.9)
    shared: dict[str, Any] = {
        "device": "cpu",
        "precision": precision,
        "framework": Framework(name=framework, queue=40),
        "views": Views(rotation=10.0),
        "optimizer": optimizer,
    }
    own = {"epochs": EPOCHS, "batch_size": BATCH} | settings
    if stage == "pretrain":
        return PretrainStage(**shared, pretrain=Pretrain(**own))
    neighborhood = Neighborhood(neighbors=own.pop("neighbors", "conaff"))
    shared |= {"clusters": CLUSTERS, "k": 4, "k1": 5, "k2": 2, "fr": 0.55, "neighborhood": neighborhood}
    return FinetuneStage(**shared, finetune=Finetune(**own))


@dataclass
class Reference:
    """A training whose every step is spelled out, with rates that are numbers and state that is replaced."""

    model: Siamese
    parameters: Any
    compute: Compute
    centroids: Tensor | None = None
    clusters: Tensor | None = None
    queue: Tensor | None = None
    counts: list[Tensor] = field(default_factory=list)

    def train(self) -> list[dict[str, float]]:
        """The log."""
        p, model, images = self.parameters, self.model, torch.from_numpy(IMAGES)
        pretrains = isinstance(p, PretrainStage)
        settings, first_epoch = (p.pretrain, 0) if pretrains else (p.finetune, FIRST)
        scales = (1.0 if pretrains else settings.lr_scale), settings.predictor_lr_scale
        groups = [{"params": list(part.parameters())} for part in (model.online, model.predictor)]
        momentum, decay = p.optimizer.momentum, p.optimizer.weight_decay
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=decay, foreach=True)
        log = []
        for epoch in range(EPOCHS):
            scatters = settings.scattering > 0 and (not pretrains or epoch >= p.optimizer.warmup_epochs)
            if (pretrains and scatters) or (not pretrains and epoch == 0):
                self.cluster()
            model.train()
            views, own = (self.generator(p.seed, first_epoch + epoch, stream) for stream in (0, 1))
            noise = p.pretrain.noise_std if pretrains and epoch >= p.optimizer.warmup_epochs else 0.0
            total, sums, steps, self.counts = torch.zeros(()), {}, COUNT // BATCH, [torch.zeros(()) for _ in range(4)]
            order = torch.randperm(COUNT, generator=views)[: steps * BATCH]
            for step, indices in enumerate(torch.split(order, BATCH)):
                progress = first_epoch + epoch + step / steps
                rate = learning_rate(progress, 0.5 * BATCH / 256, 1, 8)
                for group, scale in zip(sgd.param_groups, scales, strict=True):
                    group["lr"] = rate * scale
                pair = two_views(images[indices], p.views, settings.crop_scale, views)
                with self.compute.autocast():
                    outputs = self.forward(pair, own, noise)
                losses = self.losses(outputs, indices, epoch, scatters)
                for name, (_, value) in losses.items():
                    sums[name] = sums.get(name, 0) + value.detach()
                first, *others = [weight * value for weight, value in losses.values()]
                loss = sum(others, first)
                sgd.zero_grad(set_to_none=True)
                loss.backward()
                sgd.step()
                if p.framework.name == "moco":
                    self.queue = torch.cat((*outputs.unit_targets, self.negatives()))[: p.framework.queue]
                self.follow(1 - target_momentum(progress, 0.9, 8))
                total += loss.detach()
            row = {"loss": total.item() / steps, "learning_rate": sgd.param_groups[0]["lr"]}
            row |= {f"loss_{name}": value.item() / steps for name, value in sums.items()}
            log.append(row | self.counted())
            if not pretrains:
                self.cluster()
        return log

    def generator(self, seed: int, epoch: int, stream: int) -> torch.Generator:
        state = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state) & (2**63 - 1))

    def cluster(self) -> None:
        features = clean_features(self.model.target, torch.from_numpy(IMAGES), self.compute)
        self.centroids, self.clusters, _ = kmeans_tensors(
            features, CLUSTERS, seed=self.parameters.seed, n_init=40, start=self.centroids
        )

    def forward(self, views: tuple[Tensor, Tensor], own: torch.Generator, noise: float) -> Outputs:
        model, size = self.model, len(views[0])
        projections = model.online(views[0]), model.online(views[1])
        inputs = projections
        if noise:
            inputs = tuple(features + noise * torch.randn(features.shape, generator=own) for features in projections)
        predictions = model.predictor(inputs[0]), model.predictor(inputs[1])
        if not model.moving_average:
            return Outputs(projections, predictions, (projections[0].detach(), projections[1].detach()))
        order = torch.randperm(size, generator=own) if model.shuffles_target else torch.arange(size)
        back = order.argsort()
        with torch.no_grad():
            targets = model.target(views[0][order])[back], model.target(views[1][order])[back]
        return Outputs(projections, predictions, targets)

    def losses(self, outputs: Outputs, indices: Tensor, epoch: int, scatters: bool) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each term."""
        p = self.parameters
        instance = partial(self.instance, outputs)
        if isinstance(p, PretrainStage):
            found, settings = {"instance": (1.0, instance())}, p.pretrain
        else:
            settings = p.finetune
            found = {"group": (1.0, self.group(outputs, indices, epoch))}
            if settings.instance:
                found["instance"] = (settings.instance, instance())
        ways = [(0, 1), (1, 0)]
        if scatters:
            members = membership(self.clusters[indices], CLUSTERS)
            ours, theirs = outputs.unit_projections, outputs.unit_targets
            apart = [
                prototype_scattering(ours[a], theirs[b], members, settings.scattering_temperature) for a, b in ways
            ]
            found["scattering"] = (settings.scattering, (apart[0] + apart[1]) / 2)
        if not isinstance(p, PretrainStage) and settings.boost:
            total = instance()
            for a, b in ways:
                target = outputs.unit_targets[b]
                trusted = high_confidence(target, self.clusters[indices], settings.boost_neighbors)
                members = membership(self.clusters[indices], CLUSTERS, trusted)
                total = total + group_compactness(outputs.unit_predictions[a], target, members)
                temperature = settings.scattering_temperature
                total = total + prototype_scattering(outputs.unit_projections[a], target, members, temperature)
            found["boost"] = (settings.boost, total / 2)
        return found

    def instance(self, outputs: Outputs) -> Tensor:
        settings = self.parameters.framework
        if settings.name == "barlow-twins":
            return redundancy_reduction(*outputs.predictions, settings.redundancy)
        predictions, targets = outputs.unit_predictions, outputs.unit_targets
        if settings.name == "moco":
            forth, back = (
                contrastive_loss(predictions[a], targets[1 - a], self.negatives(), settings.temperature) for a in (0, 1)
            )
        else:
            forth, back = (instance_concordance(predictions[a], targets[1 - a]) for a in (0, 1))
        return forth + back

    def group(self, outputs: Outputs, indices: Tensor, epoch: int) -> Tensor:
        p, losses = self.parameters, []
        for prediction, target in zip(outputs.unit_predictions, outputs.unit_targets[::-1], strict=True):
            local = p.neighborhood.neighbors == "local"
            neighbors = euclidean(target, p.k) if local else conaff(target, p.k, p.conaff)
            ratio = boundary_ratio(target, self.clusters[indices], self.centroids)
            kept = candidates(ratio, candidate_fraction(p, epoch))
            losses.append(group_concordance(prediction, target, neighbors, kept, p.finetune.divisor))
            purity = purity_by_rank(torch.from_numpy(LABELS)[indices], neighbors)[:, -1]
            self.counts[0] += 1
            self.counts[1] += kept.float().mean()
            self.counts[2] += purity.isfinite().sum()
            self.counts[3] += purity.nansum()
        return losses[0] + losses[1]

    def counted(self) -> dict[str, float]:
        directions, kept, purities, pure = (count.item() for count in self.counts)
        return {"candidate_fraction": kept / directions, "neighbor_purity": pure / purities} if directions else {}

    def negatives(self) -> Tensor:
        if self.queue is None:
            noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
            self.queue = F.normalize(noise, dim=1)
        return self.queue

    def follow(self, share: float) -> None:
        """The target follows the online network."""
        model = self.model
        if model.moving_average:
            for ours, theirs in zip(model.target.parameters(), model.online.parameters(), strict=True):
                ours.data.lerp_(theirs.data, share)
        else:
            model.target.load_state_dict(model.online.state_dict())


def train(stage: str, parameters: Any, model: Siamese, execution: Execution) -> list[dict[str, Any]]:
    if stage == "pretrain":
        return pretrain(model, IMAGES, LABELS, parameters, Unsaved(), execution=execution)
    return finetune(model, IMAGES, LABELS, parameters, FIRST, Unsaved(), execution=execution)


EVERYTHING: dict[str, dict[str, Any]] = {
    "pretrain": {"scattering": 0.1, "prototypes": CLUSTERS, "noise_std": 0.01},
    "finetune": {"instance": 0.5, "scattering": 0.1, "boost": 0.3, "boost_neighbors": 3},
}
PLAINLY: tuple[str, int] = ("float32", 0)  # precision, samples that share batch-norm statistics
CASES: list[tuple[str, str, dict[str, Any], tuple[str, int]]] = [
    *[(stage, name, EVERYTHING[stage], PLAINLY) for stage in EVERYTHING for name in frameworks.names()],
    *[(stage, "byol", {}, other) for stage in EVERYTHING for other in (PLAINLY, ("bfloat16", 0), ("float32", 8))],
    ("finetune", "byol", {"neighbors": "local", "divisor": "batch"}, PLAINLY),
]
IDS = [" ".join(map(str, (stage, framework, *settings, *other))) for stage, framework, settings, other in CASES]


@dataclass(frozen=True)
class Trained:
    """The networks and the log of our training and of the reference's."""

    ours: Siamese
    theirs: Siamese
    log: list[dict[str, Any]]
    expected: list[dict[str, float]]


def train_both(stage: str, framework: str, settings: Any, other: tuple[str, int], execution: Execution) -> Trained:
    precision, bn_group = other
    parameters = parameters_of(stage, framework, precision, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS_PER_STAGE, "resnet18", (1, 1, 1, 1))  # for speed: there are many runs
        ours, theirs = (small_spec(framework=framework, bn_group=bn_group).build(seed=0) for _ in range(2))
    for model in (ours, theirs):
        model.to(memory_format=torch.channels_last)
    log = train(stage, parameters, ours, execution)
    return Trained(ours, theirs, log, Reference(theirs, parameters, Compute.choose("cpu", precision)).train())


@pytest.mark.parametrize(("stage", "framework", "settings", "other"), CASES, ids=IDS)
def test_weights_and_log_are_those_of_the_loop_that_is_written_out(
    stage: str, framework: str, settings: dict[str, Any], other: tuple[str, int]
) -> None:
    found = train_both(stage, framework, settings, other, PLAIN)
    for row, columns in zip(found.log, found.expected, strict=True):
        assert {name: row[name] for name in columns} == columns
    state = found.theirs.state_dict()
    assert [name for name, tensor in found.ours.state_dict().items() if not torch.equal(tensor, state[name])] == []


def assert_close(found: Trained) -> None:
    """The same up to rounding in float32."""
    for row, columns in zip(found.log, found.expected, strict=True):
        assert {name: row[name] for name in columns} == pytest.approx(columns, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(found.ours.state_dict(), found.theirs.state_dict(), rtol=1e-5, atol=1e-5)


# Rounding in bfloat16 is far from 1e-5.
@pytest.mark.parametrize(
    ("stage", "framework", "settings", "other"), [case for case in CASES if case[3][0] == "float32"]
)
def test_both_views_in_one_forward_pass_give_the_same_up_to_rounding(
    stage: str, framework: str, settings: dict[str, Any], other: tuple[str, int]
) -> None:
    execution = Execution(one_forward=True, fused_optimizer=True)
    assert_close(train_both(stage, framework, settings, other, execution))


def test_compiled_views_and_networks_give_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")  # all but the generation of code
    execution = Execution(compiled=True, one_forward=True, fused_optimizer=True)
    assert_close(train_both("pretrain", "byol", {}, ("float32", 0), execution))


def test_where_compiling_fails_a_note_says_why_and_the_training_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler\nfor this device")

    monkeypatch.setattr(compiling, "BACKEND", fail)
    with pytest.warns(Note, match="cannot be compiled, .*no compiler"):
        found = train_both("pretrain", "byol", {}, ("float32", 0), Execution(compiled=True))
    state = found.theirs.state_dict()
    assert [name for name, tensor in found.ours.state_dict().items() if not torch.equal(tensor, state[name])] == []


def test_a_cpu_executes_every_operation_by_itself() -> None:
    assert Execution.choose(torch.device("cpu"), Training()) == PLAIN


def test_a_gpu_does_all_that_is_faster_there_unless_it_is_switched_off() -> None:
    gpu = torch.device("cuda")
    assert Execution.choose(gpu, Training()) == Execution(True, True, True, True)
    off = Execution.choose(gpu, Training(graph="off"))
    assert not off.graph
    assert not off.compiled
